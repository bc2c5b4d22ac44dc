"""One or two visits to every tile of the softmax loss: its value and gradients."""

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax

from clip_losses.fused import Grads, Wanted
from clip_losses.logsumexp import RowStats, Target, finish, merge, no_stats, observe
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

Direction = Literal["both", "image_to_text", "text_to_image"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxSettings(Settings):
    """The static choices of the softmax loss."""

    label_smoothing: float
    direction: Direction


def visit_all(settings: SoftmaxSettings, operands: Operands, wanted: Wanted) -> tuple[Array, Grads]:
    """The loss and the wanted gradients: from one visit to every tile where tiles hold whole rows, else from two."""
    if settings.direction == "text_to_image":
        # The same loss with the towers exchanged.
        settings = dataclasses.replace(settings, direction="image_to_text")
        swapped = operands._replace(image_embeds=operands.text_embeds, text_embeds=operands.image_embeds)
        value, (texts, images, *scalars) = visit_all(settings, swapped, (wanted[1], wanted[0], wanted[2], wanted[3]))
        return value, (images, texts, scalars[0], scalars[1])

    images, texts, scale, _, image_ids, text_ids, mask = operands
    dtype = wide(images.dtype)
    scale = scale.astype(dtype)
    kept = num_kept(operands, settings)
    both = settings.direction == "both"
    want_images, want_texts, want_scale, _ = wanted
    sum_slopes = want_scale and needs_slope_sum(images.dtype, wanted)
    u_pair = clean((images.astype(dtype) * texts.astype(dtype)).sum(axis=1), mask)
    pair = scale * u_pair
    smoothing = settings.label_smoothing / kept if settings.label_smoothing else None
    row_offset = first_row(images.shape[0], settings.axis_name)
    summarise = functools.partial(
        finish, weight=0.5 if both else 1.0, label_smoothing=settings.label_smoothing, num_kept=kept
    )

    ids = image_ids is not None or text_ids is not None

    def start(embeds: Array, stats: bool, grads: bool) -> tuple[RowStats | None, Array | None]:
        zeros = jnp.broadcast_to(jnp.zeros_like(scale), embeds.shape[:1])
        empty = no_stats(zeros, ids=ids, smoothing=smoothing is not None) if stats else None
        return empty, jnp.zeros_like(embeds, dtype) if grads else None

    def visit(collect: bool, differentiate: bool, targets: tuple[Target | None, Target | None]) -> tuple[Any, Any, Any]:
        """Go over the tiles to collect their rows' statistics, to add up gradients, or both at once."""

        def body(row: Slice, col: Slice, row_sums: Any, col_sums: Any) -> tuple[Any, Any, Any]:
            (row_stats, image_sum), (col_stats, text_sum) = row_sums, col_sums
            (row_pair, row_target), (col_pair, col_target) = row.extra, col.extra
            u = dot(row.embeds, col.embeds, (1, 1), settings.precision)
            off, same = negatives(row, col), duplicates(row, col)
            # A dropped pair's logit is −∞, so that its probability is exactly 0.
            x = jnp.where(off, scale * u, -jnp.inf)
            if collect:
                row_stats = observe(row_stats, x, row_pair, off, same, 1)
                row_target = summarise(row_stats, row_pair)[1] if differentiate else None
                if both:
                    col_stats = observe(col_stats, x, col_pair, off, same, 0)
                    col_target = summarise(col_stats, col_pair)[1] if differentiate else None
            scale_sum = None
            if differentiate:
                g = _slopes(x, off, same, row_target, col_target, smoothing)
                scale_sum = (g * u).sum() if sum_slopes else None
                g_low = g.astype(images.dtype)
                if want_images:
                    image_sum += dot(g_low, col.embeds, (1, 0), settings.precision)
                if want_texts:
                    text_sum += dot(g_low, row.embeds, (0, 0), settings.precision)
            return (row_stats, image_sum), (col_stats, text_sum), scale_sum

        def start_cols(cols: Side) -> Any:
            return start(cols.embeds, collect and both, differentiate and want_texts)

        def work(resident: Any, cols: Side, col_sums: Any, col_offset: Array | int) -> tuple[Any, Any]:
            row_sums, scale_sum = resident
            sums = (row_sums, col_sums, scale_sum)
            row_sums, col_sums, scale_sum = sweep(body, settings.tile, rows, cols, sums, (row_offset, col_offset))
            return (row_sums, scale_sum), col_sums

        needs_pair = collect and (differentiate or ids or smoothing is not None)
        known_pair = pair if needs_pair else None
        rows = Side(images, image_ids, text_ids, mask, (known_pair, targets[0]))
        cols = Side(texts, image_ids, text_ids, mask, (known_pair, targets[1]))
        resident = (
            start(images, collect, differentiate and want_images),
            jnp.zeros_like(scale) if differentiate and sum_slopes else None,
        )
        (row_sums, scale_sum), col_sums = over_blocks(
            work,
            start_cols,
            _merge_stats if collect and both else None,
            resident,
            cols,
            axis_name=settings.axis_name,
            comm=settings.comm,
            grain=settings.tile[1],
        )
        return row_sums, col_sums, scale_sum

    at_once = any(wanted) and _rows_are_whole(settings, images.shape[0])
    (row_stats, image_sum), (col_stats, text_sum), scale_sum = visit(True, at_once, (None, None))
    outcome, row_target = summarise(row_stats, pair)
    loss, g, col_target = outcome.loss, outcome.pair_slope, None
    if both:
        outcome, col_target = summarise(col_stats, pair)
        loss, g = (loss + outcome.loss) / 2, (g + outcome.pair_slope) / 2
    if any(wanted) and not at_once:
        (_, image_sum), (_, text_sum), scale_sum = visit(False, True, (row_target, col_target))

    loss, g = clean(loss, mask), clean(g, mask)
    total = loss.sum()
    if settings.axis_name is not None:
        total = lax.psum(total, settings.axis_name)
    share = 1 / kept if settings.reduction == "mean" else jnp.ones_like(scale)
    along: Any = None
    factor, height = share * scale, settings.tile[0]
    if want_texts:
        text_sum, along = finish_rows(text_sum, Side(texts, mask=mask, extra=g), images, factor, height)
    if want_images:
        image_sum, along = finish_rows(image_sum, Side(images, mask=mask, extra=g), texts, factor, height)
    if sum_slopes:
        along = scale_sum + (g * u_pair).sum()
    bias_grad = None
    return share * total, (image_sum, text_sum, share * along if want_scale else None, bias_grad)


def _slopes(x: Array, off: Array, same: Array | None, row: Any, col: Any, smoothing: Array | None) -> Array:
    """``dloss/dx`` of a tile off the diagonal: softmax minus target, along rows and, if given, along columns."""
    g = jnp.exp(x - row.shift[:, None])
    if col is not None:
        g += jnp.exp(x - col.shift[None])
    if same is not None:
        share = row.share[:, None] if col is None else row.share[:, None] + col.share[None]
        g -= jnp.where(same & off, share, 0)
    return g if smoothing is None else g - jnp.where(off, smoothing, 0)


def _merge_stats(left: tuple[RowStats, None], right: tuple[RowStats, None]) -> tuple[RowStats, None]:
    return merge(left[0], right[0]), None


def _rows_are_whole(settings: SoftmaxSettings, num_rows: int) -> bool:
    """Whether one visit to a tile sees everything that its rows, and for both directions its columns, sum over."""
    num_devices = 1 if settings.axis_name is None else lax.axis_size(settings.axis_name)
    height, width = settings.tile
    if num_devices == 1:
        return width >= num_rows and (settings.direction != "both" or height >= num_rows)
    return settings.comm == "all_gather" and settings.direction != "both" and width >= num_rows * num_devices
