"""The symmetric softmax loss of CLIP: each image picks its text among all texts, and each text its image."""

from typing import TypedDict, Unpack

from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from clip_losses import fused
from clip_losses.operands import AxisName, Comm, Impl, Operands, Reduction, Tile, check, settle
from clip_losses.softmax_sweep import Direction, SoftmaxSettings, visit_all

# One tile of all rows needs three products where many need four, so it wins for longer than in one direction, which
# needs three either way (benchmarks/losses.py). A tile of 8192 rows is 256 MiB.
_DENSE_ROWS = 8192
_DENSE_ROWS_ONE_WAY = 1024

SoftmaxGrads = tuple[Array, Array, Array]


class SoftmaxOptions(TypedDict, total=False):
    """The keyword options that every form of the softmax loss takes; ``softmax_loss`` documents them."""

    image_ids: ArrayLike | None
    text_ids: ArrayLike | None
    mask: ArrayLike | None
    label_smoothing: float
    direction: Direction
    tile: Tile
    impl: Impl
    precision: lax.PrecisionLike
    reduction: Reduction


def softmax_loss(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    *,
    image_ids: ArrayLike | None = None,
    text_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    direction: Direction = "both",
    tile: Tile = "auto",
    impl: Impl = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    comm: Comm = "ring",
) -> Array:
    """Cross-entropy of picking each image's text among all texts and each text's image among all images, averaged.

    With ``x = logit_scale · zᴵ zᵀ``: ``L = 1/2b Σᵢ [−log softmaxⱼ(xᵢⱼ)ᵢ − log softmaxⱼ(xⱼᵢ)ᵢ]``. With ids a row may
    have ``P`` positives; its target is then ``1/P`` on each of them, and ``ε`` of it is spread evenly over all by
    ``label_smoothing``. Computed in float32 from products accumulated in float32 (float64 for float64), whatever the
    inputs.

    Memory, ``axis_name`` and the rule for gradients inside a ``shard_map`` or ``pmap`` are those of ``sigmoid_loss``.

    >>> import jax.numpy as jnp
    >>> same = jnp.ones((4, 1))
    >>> print(f"{softmax_loss(same, same, 10.0):.4f}")  # identical embeddings cannot be told apart: log 4
    1.3863

    Args:
        image_embeds: ``[b, e]`` floating, normalised by the caller.
        text_embeds: ``[b, e]`` of the same dtype; row ``i`` matches row ``i``.
        logit_scale: Scalar multiplier of the similarities, ``1/τ``: already exponentiated, where checkpoints store its
            log.
        image_ids: ``[b]`` integer. Rows with equal ids hold the same image, so each matches the other's text.
        text_ids: ``[b]`` integer. Rows with equal ids hold the same text.
        mask: ``[b]`` bool. Where it is False, both sides of the row are dropped, whatever they hold.
        label_smoothing: ``ε`` in ``[0, 1)``.
        direction: ``"both"``, or one of ``"image_to_text"`` and ``"text_to_image"`` alone (InfoNCE).
        tile: Rows and columns of a tile, as one integer or a pair; ``"auto"`` is (1024, 512) on CPU and 2048 elsewhere,
            and for one direction 256 whole rows of up to 65,536, which saves a product.
        impl: ``"tiled"``, ``"dense"`` (one tile of all rows), or ``"auto"``: dense up to 8192 rows on one device
            (1024 for one direction), where one tile saves a product.
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
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), 2021 (arXiv
        2103.00020). Cheng et al., "Breaking the Memory Barrier" (Inf-CL), 2024 (arXiv 2410.17243), for the tiling. Yang
        et al., "Unified Contrastive Learning in Image-Text-Label Space" (UniCL), 2022 (arXiv 2204.03610), for several
        positives.
    """
    return fused.loss(
        visit_all,
        *_prepare(
            image_embeds,
            text_embeds,
            logit_scale,
            None,
            axis_name,
            comm,
            image_ids=image_ids,
            text_ids=text_ids,
            mask=mask,
            label_smoothing=label_smoothing,
            direction=direction,
            tile=tile,
            impl=impl,
            precision=precision,
            reduction=reduction,
        ),
    )


def softmax_loss_and_grads(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    *,
    axis_name: AxisName | None = None,
    comm: Comm = "ring",
    **options: Unpack[SoftmaxOptions],
) -> tuple[Array, SoftmaxGrads]:
    """The softmax loss with its gradients, in the same pass: for accumulation, where the encoder is differentiated
    apart.

    ``encode``'s ``vjp`` takes the embeddings' gradients from here, one microbatch at a time. Over an ``axis_name`` they
    are this device's rows of the global loss's gradients, and the scalars' whole gradients, under any ``check_vma``.

    >>> import jax.numpy as jnp
    >>> loss, (d_image, d_text, d_scale) = softmax_loss_and_grads(jnp.eye(2), jnp.eye(2), 10.0)
    >>> d_image.shape, d_scale.shape
    ((2, 2), ())

    Args:
        image_embeds: ``[b, e]``, and all else as for ``softmax_loss``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar.
        axis_name: As for ``softmax_loss``.
        comm: As for ``softmax_loss``.
        **options: As for ``softmax_loss``.

    Returns:
        The loss, and a tuple of its gradients by the three positional arguments, in their dtypes.

    Raises:
        ValueError: As ``softmax_loss``.
    """
    prepared = _prepare(image_embeds, text_embeds, logit_scale, None, axis_name, comm, **options)
    return fused.loss_and_grads(visit_all, *prepared)


def sharded_softmax_loss(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    comm: Comm = "ring",
    **options: Unpack[SoftmaxOptions],
) -> Array:
    """The softmax loss of global arrays whose rows are split over axes of a mesh; it owns its ``shard_map``.

    It may be called under ``jax.jit`` and differentiated like any function. Other axes of the mesh repeat the work:
    name them in ``axis_name`` to divide it.

    >>> import jax, jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> print(f"{sharded_softmax_loss(jnp.eye(2), jnp.eye(2), 10.0, mesh=mesh):.4f}")
    0.0000

    Args:
        image_embeds: ``[b, e]``, ``b`` a multiple of the devices along ``axis_name``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar multiplier.
        mesh: Where the rows live.
        axis_name: The mesh axis, or tuple of axes, that the rows are split over.
        comm: ``"ring"`` or ``"all_gather"``.
        **options: As for ``softmax_loss``, ids and mask ``[b]`` for all rows.

    Returns:
        The scalar that ``softmax_loss`` of the whole batch returns, replicated.

    Raises:
        ValueError: As ``softmax_loss``; or if the mesh lacks an axis, or ``b`` does not divide over its devices.
    """
    return fused.loss(visit_all, *_prepare(image_embeds, text_embeds, logit_scale, mesh, axis_name, comm, **options))


def sharded_softmax_loss_and_grads(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    comm: Comm = "ring",
    **options: Unpack[SoftmaxOptions],
) -> tuple[Array, SoftmaxGrads]:
    """``sharded_softmax_loss`` with its gradients, in the same pass.

    Args:
        image_embeds: ``[b, e]``, and all else as for ``sharded_softmax_loss``.
        text_embeds: ``[b, e]``.
        logit_scale: Scalar.
        mesh: Where the rows live.
        axis_name: The mesh axis or axes that the rows are split over.
        comm: ``"ring"`` or ``"all_gather"``.
        **options: As for ``softmax_loss``.

    Returns:
        The loss, and a tuple of its gradients by the three positional arguments: the embeddings' split like them.

    Raises:
        ValueError: As ``sharded_softmax_loss``.
    """
    prepared = _prepare(image_embeds, text_embeds, logit_scale, mesh, axis_name, comm, **options)
    return fused.loss_and_grads(visit_all, *prepared)


def _prepare(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    mesh: Mesh | None,
    axis_name: AxisName | None,
    comm: Comm,
    *,
    image_ids: ArrayLike | None = None,
    text_ids: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    direction: Direction = "both",
    tile: Tile = "auto",
    impl: Impl = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Reduction = "mean",
) -> tuple[SoftmaxSettings, Operands]:
    operands = check(image_embeds, text_embeds, logit_scale, None, image_ids, text_ids, mask)
    if direction not in ("both", "image_to_text", "text_to_image"):
        raise ValueError(f"direction must be one of both, image_to_text, text_to_image, got {direction!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    settled = settle(
        operands,
        tile=tile,
        impl=impl,
        precision=precision,
        reduction=reduction,
        axis_name=axis_name,
        comm=comm,
        mesh=mesh,
        dense_rows=_DENSE_ROWS if direction == "both" else _DENSE_ROWS_ONE_WAY,
        strips=direction != "both",
    )
    return SoftmaxSettings(label_smoothing=float(label_smoothing), direction=direction, **settled), operands
