"""One visit to every tile of the sigmoid loss: its value and gradients."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from clip_losses.fused import Grads, Wanted
from clip_losses.operands import Operands, Settings, num_kept
from clip_losses.ring import first_row, over_blocks
from clip_losses.tiles import (
    Side,
    Slice,
    clean,
    dot,
    duplicates,
    finish_rows,
    needs_slope_sum,
    negatives,
    sweep,
    wide,
)


def visit_all(settings: Settings, operands: Operands, wanted: Wanted) -> tuple[Array, Grads]:
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

    def start(cols: Side) -> Any:
        return jnp.zeros_like(cols.embeds, dtype) if want_texts else None

    def work(resident: Any, cols: Side, text_sum: Any, col_offset: Array | int) -> tuple[Any, Any]:
        image_sum, totals = resident
        sums = (image_sum, text_sum, totals)
        image_sum, text_sum, totals = sweep(body, settings.tile, rows, cols, sums, (row_offset, col_offset))
        return (image_sum, totals), text_sum

    zero = jnp.zeros_like(scale)
    totals = (zero, zero if sum_slopes else None, zero if want_bias else None)
    resident = (jnp.zeros_like(images, dtype) if want_images else None, totals)
    (image_sum, (total, scale_sum, bias_sum)), text_sum = over_blocks(
        work,
        start,
        None,
        resident,
        cols,
        axis_name=settings.axis_name,
        comm=settings.comm,
        grain=settings.tile[1],
    )
    total += pair_losses.sum()
    if settings.axis_name is not None:
        total = lax.psum(total, settings.axis_name)
    share = 1 / num_kept(operands, settings) if settings.reduction == "mean" else jnp.ones_like(scale)
    along: Any = None
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
