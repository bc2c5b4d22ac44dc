"""The symmetric softmax loss of CLIP: each image picks its text among all texts, and each text its image."""

import dataclasses
import functools
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from clip_losses import fused
from clip_losses.logsumexp import RowStats, Target, finish, merge, no_stats, observe
from clip_losses.operands import AxisName, Comm, Impl, Operands, Reduction, Settings, Tile, check, num_kept, settle
from clip_losses.ring import first_row, over_blocks
from clip_losses.tiles import Side, Slice, clean, dot, duplicates, finish_rows, needs_slope_sum, negatives, sweep, wide

SoftmaxGrads = tuple[Array, Array, Array]
Direction = Literal["both", "image_to_text", "text_to_image"]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SoftmaxSettings(Settings):
    label_smoothing: float
    direction: Direction


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
    return fused.loss(
        _sweep,
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
    prepared = _prepare(image_embeds, text_embeds, logit_scale, None, axis_name, comm, **options)
    return fused.loss_and_grads(_sweep, *prepared)


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
    return fused.loss(_sweep, *_prepare(image_embeds, text_embeds, logit_scale, mesh, axis_name, comm, **options))


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
    prepared = _prepare(image_embeds, text_embeds, logit_scale, mesh, axis_name, comm, **options)
    return fused.loss_and_grads(_sweep, *prepared)


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
) -> tuple[_SoftmaxSettings, Operands]:
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
        strips=direction != "both",
    )
    return _SoftmaxSettings(label_smoothing=float(label_smoothing), direction=direction, **settled), operands


def _sweep(settings: _SoftmaxSettings, operands: Operands, wanted: fused.Wanted) -> tuple[Array, fused.Grads]:
    """The loss and the wanted gradients: from one visit to every tile where tiles hold whole rows, else from two."""
    if settings.direction == "text_to_image":
        # The same loss with the towers exchanged.
        settings = dataclasses.replace(settings, direction="image_to_text")
        swapped = operands._replace(image_embeds=operands.text_embeds, text_embeds=operands.image_embeds)
        value, (texts, images, *scalars) = _sweep(settings, swapped, (wanted[1], wanted[0], wanted[2], wanted[3]))
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

    def start(pair: Array, embeds: Array, stats: bool, grads: bool) -> tuple[RowStats | None, Array | None]:
        ids = image_ids is not None or text_ids is not None
        empty = no_stats(pair, ids=ids, smoothing=settings.label_smoothing > 0) if stats else None
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

        def work(resident: Any, cols: Side, col_offset: Array | int) -> tuple[Any, Any]:
            row_sums, scale_sum = resident
            col_sums = start(cols.extra[0], cols.embeds, collect and both, differentiate and want_texts)
            sums = (row_sums, col_sums, scale_sum)
            row_sums, col_sums, scale_sum = sweep(body, settings.tile, rows, cols, sums, (row_offset, col_offset))
            return (row_sums, scale_sum), col_sums

        known_pair = pair if collect else None
        rows = Side(images, image_ids, text_ids, mask, (known_pair, targets[0]))
        cols = Side(texts, image_ids, text_ids, mask, (known_pair, targets[1]))
        resident = (
            start(pair, images, collect, differentiate and want_images),
            jnp.zeros_like(scale) if differentiate and sum_slopes else None,
        )
        (row_sums, scale_sum), col_sums = over_blocks(
            work,
            _merge_stats if collect and both else None,
            resident,
            cols,
            axis_name=settings.axis_name,
            comm=settings.comm,
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
    along = None
    factor, height = share * scale, settings.tile[0]
    if want_texts:
        text_sum, along = finish_rows(text_sum, Side(texts, mask=mask, extra=g), images, factor, height)
    if want_images:
        image_sum, along = finish_rows(image_sum, Side(images, mask=mask, extra=g), texts, factor, height)
    if sum_slopes:
        along = scale_sum + (g * u_pair).sum()
    bias_grad = None
    return share * total, (image_sum, text_sum, share * along if want_scale else None, bias_grad)


def _slopes(
    x: Array, off: Array, same: Array | None, row: Target, col: Target | None, smoothing: Array | None
) -> Array:
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


def _rows_are_whole(settings: _SoftmaxSettings, num_rows: int) -> bool:
    """Whether one visit to a tile sees everything that its rows, and for both directions its columns, sum over."""
    num_devices = 1 if settings.axis_name is None else lax.axis_size(settings.axis_name)
    height, width = settings.tile
    if num_devices == 1:
        return width >= num_rows and (settings.direction != "both" or height >= num_rows)
    return settings.comm == "all_gather" and settings.direction != "both" and width >= num_rows * num_devices
