"""The pairwise sigmoid loss of SigLIP: every image and text is a pair of its own, so no row needs any other."""

from typing import TypedDict, Unpack

from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from clip_losses import fused
from clip_losses.operands import AxisName, Comm, Impl, Operands, Reduction, Settings, Tile, check, settle
from clip_losses.sigmoid_sweep import visit_all

# Beyond it tiles are faster: they stay in the cache (benchmarks/losses.py).
_DENSE_ROWS = 1024

SigmoidGrads = tuple[Array, Array, Array, Array]


class SigmoidOptions(TypedDict, total=False):
    """The keyword options that every form of the sigmoid loss takes; ``sigmoid_loss`` documents them."""

    image_ids: ArrayLike | None
    text_ids: ArrayLike | None
    mask: ArrayLike | None
    tile: Tile
    impl: Impl
    precision: lax.PrecisionLike
    reduction: Reduction


def sigmoid_loss(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike = 0.0,
    *,
    image_ids: ArrayLike | None = None,
    text_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tile: Tile = "auto",
    impl: Impl = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    comm: Comm = "ring",
) -> Array:
    """Binary cross-entropy of every image with every text, summed over pairs and divided by the number of rows.

    In the paper's symbols, with ``t = logit_scale``, ``b = logit_bias`` and ``zᵢⱼ = 1`` for a matching pair, ``−1``
    otherwise: ``L = −1/|B| Σᵢ Σⱼ log σ(zᵢⱼ (t xᵢ·yⱼ + b))``. The paper's ``t`` is the multiplier too; its parameter is
    ``t' = log t``. Computed in float32 from products accumulated in float32 (float64 for float64), whatever the inputs.

    Memory beyond inputs and gradients is a few tiles. Given ``axis_name`` it runs inside the caller's own ``shard_map``
    or ``pmap``, on this device's rows, and returns the global loss on every device. Its gradients there follow JAX's
    rule for any loss that ends in a ``psum``: taken outside the ``shard_map``, or inside it with ``check_vma=True``,
    they are those of the global loss; taken inside where JAX does not track replication (``check_vma=False``,
    ``pmap``), each device has ``n`` times its share, so ``pmean`` of a parameter's gradient over the axis is right.
    ``sigmoid_loss_and_grads`` is right everywhere.

    >>> import jax.numpy as jnp
    >>> image_embeds = text_embeds = jnp.eye(2)
    >>> print(f"{sigmoid_loss(image_embeds, text_embeds, 10.0, -5.0):.4f}")  # 2 log(1 + exp(-5))
    0.0134

    Args:
        image_embeds: ``[b, e]`` floating, normalised by the caller.
        text_embeds: ``[b, e]`` of the same dtype; row ``i`` matches row ``i``.
        logit_scale: Scalar multiplier of the similarities: already exponentiated, where checkpoints store its log.
        logit_bias: Scalar added to them.
        image_ids: ``[b]`` integer. Rows with equal ids hold the same image, so each matches the other's text.
        text_ids: ``[b]`` integer. Rows with equal ids hold the same text.
        mask: ``[b]`` bool. Where it is False, both sides of the row are dropped, whatever they hold.
        tile: Rows and columns of a tile, as one integer or a pair; ``"auto"`` is (1024, 512) on CPU and 2048 elsewhere.
        impl: ``"tiled"``, ``"dense"`` (one tile of all rows), or ``"auto"``: dense up to 1024 rows on one device.
        precision: Of the products. None is the highest: accelerators' defaults round float32 inputs.
        reduction: ``"mean"`` divides by the kept rows, ``"sum"`` does not.
        axis_name: Name, or tuple of names, of the axes that the rows are split over; None for one device.
        comm: ``"ring"`` passes the texts around; ``"all_gather"`` needs memory for all of them but fewer, larger
            messages.

    Returns:
        A float32 scalar (float64 for float64 inputs); 0 when no row is kept.

    Raises:
        ValueError: If shapes, dtypes or options do not fit, or ``axis_name`` is unbound.

    References:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), 2023 (arXiv 2303.15343).
        Cheng et al., "Breaking the Memory Barrier" (Inf-CL), 2024 (arXiv 2410.17243), for the tiling.
    """
    return fused.loss(
        visit_all,
        *_prepare(
            image_embeds,
            text_embeds,
            logit_scale,
            logit_bias,
            None,
            axis_name,
            comm,
            image_ids=image_ids,
            text_ids=text_ids,
            mask=mask,
            tile=tile,
            impl=impl,
            precision=precision,
            reduction=reduction,
        ),
    )


def sigmoid_loss_and_grads(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike = 0.0,
    *,
    axis_name: AxisName | None = None,
    comm: Comm = "ring",
    **options: Unpack[SigmoidOptions],
) -> tuple[Array, SigmoidGrads]:
    """The sigmoid loss with its gradients, in the same pass: for accumulation, where the encoder is differentiated
    apart.

    ``encode``'s ``vjp`` takes the embeddings' gradients from here, one microbatch at a time. Over an ``axis_name`` they
    are this device's rows of the global loss's gradients, and the scalars' whole gradients, under any ``check_vma``.

    >>> import jax.numpy as jnp
    >>> loss, (d_image, d_text, d_scale, d_bias) = sigmoid_loss_and_grads(jnp.eye(2), jnp.eye(2), 10.0, -5.0)
    >>> d_image.shape, d_scale.shape
    ((2, 2), ())

    Args:
        image_embeds: ``[b, e]``, and all else as for ``sigmoid_loss``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar.
        logit_bias: Scalar.
        axis_name: As for ``sigmoid_loss``.
        comm: As for ``sigmoid_loss``.
        **options: As for ``sigmoid_loss``.

    Returns:
        The loss, and a tuple of its gradients by the four positional arguments, in their dtypes.

    Raises:
        ValueError: As ``sigmoid_loss``.
    """
    prepared = _prepare(image_embeds, text_embeds, logit_scale, logit_bias, None, axis_name, comm, **options)
    return fused.loss_and_grads(visit_all, *prepared)


def sharded_sigmoid_loss(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike = 0.0,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    comm: Comm = "ring",
    **options: Unpack[SigmoidOptions],
) -> Array:
    """The sigmoid loss of global arrays whose rows are split over axes of a mesh; it owns its ``shard_map``.

    It may be called under ``jax.jit`` and differentiated like any function. Other axes of the mesh repeat the work:
    name them in ``axis_name`` to divide it.

    >>> import jax, jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> print(f"{sharded_sigmoid_loss(jnp.eye(2), jnp.eye(2), 10.0, -5.0, mesh=mesh):.4f}")
    0.0134

    Args:
        image_embeds: ``[b, e]``, ``b`` a multiple of the devices along ``axis_name``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar multiplier.
        logit_bias: Scalar.
        mesh: Where the rows live.
        axis_name: The mesh axis, or tuple of axes, that the rows are split over.
        comm: ``"ring"`` or ``"all_gather"``.
        **options: As for ``sigmoid_loss``, ids and mask ``[b]`` for all rows.

    Returns:
        The scalar that ``sigmoid_loss`` of the whole batch returns, replicated.

    Raises:
        ValueError: As ``sigmoid_loss``; or if the mesh lacks an axis, or ``b`` does not divide over its devices.
    """
    return fused.loss(
        visit_all, *_prepare(image_embeds, text_embeds, logit_scale, logit_bias, mesh, axis_name, comm, **options)
    )


def sharded_sigmoid_loss_and_grads(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike = 0.0,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    comm: Comm = "ring",
    **options: Unpack[SigmoidOptions],
) -> tuple[Array, SigmoidGrads]:
    """``sharded_sigmoid_loss`` with its gradients, in the same pass.

    Args:
        image_embeds: ``[b, e]``, and all else as for ``sharded_sigmoid_loss``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar.
        logit_bias: Scalar.
        mesh: Where the rows live.
        axis_name: The mesh axis or axes that the rows are split over.
        comm: ``"ring"`` or ``"all_gather"``.
        **options: As for ``sigmoid_loss``.

    Returns:
        The loss, and a tuple of its gradients by the four positional arguments: the embeddings' split like them.

    Raises:
        ValueError: As ``sharded_sigmoid_loss``.
    """
    prepared = _prepare(image_embeds, text_embeds, logit_scale, logit_bias, mesh, axis_name, comm, **options)
    return fused.loss_and_grads(visit_all, *prepared)


def _prepare(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike,
    mesh: Mesh | None,
    axis_name: AxisName | None,
    comm: Comm,
    *,
    image_ids: ArrayLike | None = None,
    text_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tile: Tile = "auto",
    impl: Impl = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Reduction = "mean",
) -> tuple[Settings, Operands]:
    operands = check(image_embeds, text_embeds, logit_scale, logit_bias, image_ids, text_ids, mask)
    settled = settle(
        operands,
        tile=tile,
        impl=impl,
        precision=precision,
        reduction=reduction,
        axis_name=axis_name,
        comm=comm,
        mesh=mesh,
        dense_rows=_DENSE_ROWS,
    )
    return Settings(**settled), operands
