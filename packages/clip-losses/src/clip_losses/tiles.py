"""The tile loop under both losses: it visits a b×b matrix of logits one tile at a time and keeps none of it.

A loss says what happens in one tile; this module slices the rows, updates the accumulators in place, and handles the
rows that no tile size divides. It knows neither formulas nor devices.

References:
    Cheng et al., "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss" (Inf-CL), 2024
    (arXiv 2410.17243), for the tiling. Ours also computes the gradients in the forward sweep.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class Side(NamedTuple):
    """One tower's share of a block of pairs: arrays whose first axis is the row, sliced together.

    Attributes:
        embeds: ``[n, e]`` floating.
        image_ids: ``[n]`` integer or None; ``text_ids`` likewise.
        mask: ``[n]`` bool or None.
        extra: What else a loss needs per row: a pytree of ``[n, ...]`` arrays.
    """

    embeds: Array
    image_ids: Array | None = None
    text_ids: Array | None = None
    mask: Array | None = None
    extra: Any = ()


class Slice(NamedTuple):
    """The rows of a ``Side`` that a tile sees: ``position`` in the global batch, and which to ``keep`` (None: all)."""

    embeds: Array
    image_ids: Array | None
    text_ids: Array | None
    keep: Array | None
    position: Array
    extra: Any


# (row, col, row_sums, col_sums) -> (row_sums, col_sums, totals): one tile's work.
Body = Callable[[Slice, Slice, Any, Any], tuple[Any, Any, Any]]


def sweep(
    body: Body,
    tile: tuple[int, int],
    rows: Side,
    cols: Side,
    sums: tuple[Any, Any, Any],
    offsets: tuple[Array | int, Array | int] = (0, 0),
) -> tuple[Any, Any, Any]:
    """Visit every tile of ``rows × cols`` once, strip by strip.

    Args:
        body: One tile's work. It gets the slices and the accumulators' slices, and returns those updated with the
            tile's contribution to the totals.
        tile: Rows and columns of a tile; larger than the block means the block.
        rows: ``n`` rows.
        cols: ``m`` rows of the other tower.
        sums: Initial ``(row_sums, col_sums, totals)``: pytrees of ``[n, ...]``, of ``[m, ...]`` and of scalars.
        offsets: The global positions of the first row and the first column.

    Returns:
        The final ``(row_sums, col_sums, totals)``.
    """
    num_rows, num_cols = rows.embeds.shape[0], cols.embeds.shape[0]
    height, width = min(tile[0], num_rows), min(tile[1], num_cols)
    num_strips, num_cells = -(-num_rows // height), -(-num_cols // width)
    nothing = jax.tree.map(jnp.zeros_like, sums[2])

    def strip(r: Array | int, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        row_sums, col_sums, totals = carry
        row, row_start = _slice(rows, r, height, offsets[0])

        def cell(c: Array | int, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            row_sums, col_sums, subtotals = carry
            col, col_start = _slice(cols, c, width, offsets[1])
            pieces = _take(row_sums, row_start, height), _take(col_sums, col_start, width)
            row_piece, col_piece, contribution = body(row, col, *pieces)
            row_sums, col_sums = _put(row_sums, row_piece, row_start), _put(col_sums, col_piece, col_start)
            return row_sums, col_sums, jax.tree.map(jnp.add, subtotals, contribution)

        # Totals are summed per tile, per strip and then overall: one long float32 sum would lose digits.
        row_sums, col_sums, subtotals = _loop(num_cells, cell, (row_sums, col_sums, nothing))
        return row_sums, col_sums, jax.tree.map(jnp.add, totals, subtotals)

    return _loop(num_strips, strip, sums)


def finish_rows(sums: Array, own: Side, other: Array, factor: Array, height: int) -> tuple[Array, Array]:
    """Complete the gradient of one tower's rows, in place.

    A plain expression would be the same, but XLA gives its result a second buffer of ``[n, e]``.

    Args:
        sums: ``[n, e]``: ``Σⱼ gᵢⱼ zⱼ`` off the diagonal.
        own: The tower's rows, with ``gᵢᵢ`` as ``extra``.
        other: ``[n, e]``: their pairs in the other tower.
        factor: What all gradients of embeddings are multiplied by.
        height: Rows to go through at a time.

    Returns:
        ``factor · Σⱼ gᵢⱼ zⱼ`` with the diagonal, ``[n, e]``, and ``Σᵢⱼ gᵢⱼ uᵢⱼ``, the derivative by the scale.
    """
    num = sums.shape[0]
    height = min(height, num)
    partners = Side(other, mask=own.mask)

    def strip(r: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, total = carry
        row, start = _slice(own, r, height, 0)
        partner, _ = _slice(partners, r, height, 0)
        old = _take(sums, start, height)
        whole = old + row.extra[:, None] * partner.embeds.astype(old.dtype)
        along = (row.embeds.astype(old.dtype) * whole).sum(axis=1)
        new = factor * whole
        if num % height:
            fresh = row.position >= r * height
            new, along = jnp.where(fresh[:, None], new, old), jnp.where(fresh, along, 0)
        return _put(sums, new, start), total + along.sum()

    return _loop(-(-num // height), strip, (sums, jnp.zeros_like(factor)))


def negatives(row: Slice, col: Slice) -> Array:
    """Which pairs of a tile are off the diagonal and kept: bool ``[rows, cols]``."""
    off = row.position[:, None] != col.position[None]
    if row.keep is not None:
        off &= row.keep[:, None]
    if col.keep is not None:
        off &= col.keep[None]
    return off


def duplicates(row: Slice, col: Slice) -> Array | None:
    """Which pairs of a tile hold the same image or the same text: bool ``[rows, cols]``, or None without ids."""
    same = None
    if row.image_ids is not None and col.image_ids is not None:
        same = row.image_ids[:, None] == col.image_ids[None]
    if row.text_ids is not None and col.text_ids is not None:
        same_text = row.text_ids[:, None] == col.text_ids[None]
        same = same_text if same is None else same | same_text
    return same


def clean(x: Array, mask: Array | None) -> Array:
    """``x`` with zeros in the rows the mask drops: they may hold anything, and NaN times zero would spread."""
    return x if mask is None else jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, 0)


def dot(left: Array, right: Array, axes: tuple[int, int], precision: lax.PrecisionLike) -> Array:
    """Contract one axis of each matrix, accumulating in float32 (float64 for float64)."""
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(left, right, dims, precision=precision, preferred_element_type=wide(left.dtype))


def wide(dtype: Any) -> Any:
    """The dtype that sums are kept in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def needs_slope_sum(dtype: Any, wanted: tuple[bool, ...]) -> bool:
    """Whether ``d logit_scale = Σ g·u`` must be summed in the tiles rather than read off the embeddings' sums.

    ``Σᵢ ⟨zᵢ, Σⱼ gᵢⱼ zⱼ⟩`` is the same, costs nothing and frees a tile, but in low precision that inner sum is of
    rounded ``g``.
    """
    return dtype != wide(dtype) or not (wanted[0] or wanted[1])


def _loop(num: int, body: Callable[[Array | int, Any], Any], carry: Any) -> Any:
    return body(0, carry) if num == 1 else lax.fori_loop(0, num, body, carry)


def _slice(side: Side, index: Array | int, size: int, offset: Array | int) -> tuple[Slice, Array | int]:
    """The ``index``-th slice of ``size`` rows; the last one ends with the array, and drops the rows it repeats."""
    num = side.embeds.shape[0]
    ragged = num % size != 0
    start = jnp.minimum(index * size, num - size) if ragged else index * size
    embeds, image_ids, text_ids, keep, extra = _take(tuple(side), start, size)
    embeds = clean(embeds, keep)
    local = start + lax.iota(jnp.int32, size)
    if ragged:
        fresh = local >= index * size
        keep = fresh if keep is None else keep & fresh
    return Slice(embeds, image_ids, text_ids, keep, offset + local, extra), start


def _take(tree: Any, start: Array | int, size: int) -> Any:
    return jax.tree.map(lambda x: x if x.shape[0] == size else lax.dynamic_slice_in_dim(x, start, size), tree)


def _put(tree: Any, piece: Any, start: Array | int) -> Any:
    def put(whole: Array, part: Array) -> Array:
        return part if whole.shape == part.shape else lax.dynamic_update_slice_in_dim(whole, part, start, 0)

    return jax.tree.map(put, tree, piece)
