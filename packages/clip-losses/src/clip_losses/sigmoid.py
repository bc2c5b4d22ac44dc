"""The pairwise sigmoid loss of SigLIP: every image and text is a pair of its own, so no row needs any other."""

from typing import Any, TypedDict, Unpack

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from clip_losses import fused
from clip_losses.operands import AxisName, Comm, Impl, Operands, Reduction, Settings, Tile, check, num_kept, settle
from clip_losses.ring import first_row, over_blocks
from clip_losses.tiles import Side, Slice, clean, dot, duplicates, finish_rows, needs_slope_sum, negatives, sweep, wide

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
    return fused.loss(
        _sweep,
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
    prepared = _prepare(image_embeds, text_embeds, logit_scale, logit_bias, None, axis_name, comm, **options)
    return fused.loss_and_grads(_sweep, *prepared)


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
    return fused.loss(
        _sweep, *_prepare(image_embeds, text_embeds, logit_scale, logit_bias, mesh, axis_name, comm, **options)
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
    prepared = _prepare(image_embeds, text_embeds, logit_scale, logit_bias, mesh, axis_name, comm, **options)
    return fused.loss_and_grads(_sweep, *prepared)


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
    )
    return Settings(**settled), operands


def _sweep(settings: Settings, operands: Operands, wanted: fused.Wanted) -> tuple[Array, fused.Grads]:
    """The loss and the wanted gradients, from one visit to every tile."""
    images, texts, scale, bias, image_ids, text_ids, mask = operands
    dtype = wide(images.dtype)
    scale, bias = scale.astype(dtype), jnp.asarray(bias).astype(dtype)
    rows, cols = (Side(embeds, image_ids, text_ids, mask) for embeds in (images, texts))
    want_images, want_texts, want_scale, want_bias = wanted
    sum_slopes = want_scale and needs_slope_sum(images.dtype, wanted)
    row_offset = first_row(images.shape[0], settings.axis_name)

    # The pairs themselves, in O(b·e): never by subtracting them from the negatives' sum.
    u_pair = clean((images.astype(dtype) * texts.astype(dtype)).sum(axis=1), mask)
    pair_losses, slope = _softplus_and_slope(-(scale * u_pair + bias))
    pair_losses, pair_slopes = clean(pair_losses, mask), clean(-slope, mask)

    def body(row: Slice, col: Slice, image_sum: Any, text_sum: Any) -> tuple[Any, Any, Any]:
        u = dot(row.embeds, col.embeds, (1, 1), settings.precision)
        same = duplicates(row, col)
        z = scale * u + bias
        z = z if same is None else jnp.where(same, -z, z)
        # A dropped pair's logit is −∞, so that its loss and gradient are exactly 0.
        losses, g = _softplus_and_slope(jnp.where(negatives(row, col), z, -jnp.inf))
        g = g if same is None else jnp.where(same, -g, g)
        totals = (losses.sum(), (g * u).sum() if sum_slopes else None, g.sum() if want_bias else None)
        g_low = g.astype(images.dtype)
        if want_images:
            image_sum += dot(g_low, col.embeds, (1, 0), settings.precision)
        if want_texts:
            text_sum += dot(g_low, row.embeds, (0, 0), settings.precision)
        return image_sum, text_sum, totals

    def work(resident: Any, cols: Side, col_offset: Array | int) -> tuple[Any, Any]:
        image_sum, totals = resident
        text_sum = jnp.zeros_like(cols.embeds, dtype) if want_texts else None
        sums = (image_sum, text_sum, totals)
        image_sum, text_sum, totals = sweep(body, settings.tile, rows, cols, sums, (row_offset, col_offset))
        return (image_sum, totals), text_sum

    zero = jnp.zeros_like(scale)
    totals = (zero, zero if sum_slopes else None, zero if want_bias else None)
    start = (jnp.zeros_like(images, dtype) if want_images else None, totals)
    (image_sum, (total, scale_sum, bias_sum)), text_sum = over_blocks(
        work, None, start, cols, axis_name=settings.axis_name, comm=settings.comm
    )

    total += pair_losses.sum()
    if settings.axis_name is not None:
        total = lax.psum(total, settings.axis_name)
    share = 1 / num_kept(operands, settings) if settings.reduction == "mean" else jnp.ones_like(scale)
    along = None
    factor, height = share * scale, settings.tile[0]
    if want_texts:
        text_sum, along = finish_rows(text_sum, Side(texts, mask=mask, extra=pair_slopes), images, factor, height)
    if want_images:
        image_sum, along = finish_rows(image_sum, Side(images, mask=mask, extra=pair_slopes), texts, factor, height)
    if sum_slopes:
        along = scale_sum + (pair_slopes * u_pair).sum()
    bias_grad = share * (bias_sum + pair_slopes.sum()) if want_bias else None
    return share * total, (image_sum, text_sum, share * along if want_scale else None, bias_grad)


def _softplus_and_slope(z: Array) -> tuple[Array, Array]:
    """``log(1 + exp(z))`` and its derivative ``g``, from one exponential and without overflow."""
    t = jnp.exp(-jnp.abs(z))
    g = jnp.where(z >= 0, 1, t) / (1 + t)
    # log(1 + t) = −log(1 − min(g, 1 − g)): needing no t, it can be written where z was.
    rest = -jnp.log1p(-jnp.minimum(g, 1 - g))
    return jnp.where(z >= 0, z + rest, rest), g
