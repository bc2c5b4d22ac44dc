"""What a row of logits leaves behind once its tiles are gone: enough for its cross-entropy and for its softmax.

A row is one image among all texts or, along the other axis of a tile, one text among all images. Its pair's logit
``x_ii`` is kept apart from the others', so that a confident row loses no digits: ``−log p_ii = softplus(lse_off −
x_ii)``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class RowStats(NamedTuple):
    """Sums over the ``b − 1`` logits of a row off the diagonal, as ``[n]`` arrays.

    Attributes:
        top: Their maximum ``m`` so far; −∞ before any.
        mass: ``Σ exp(x − m)``.
        num_extra: How many of them are positives too, or None without ids.
        extra_gap: ``Σ (x − x_ii)`` over those positives, or None.
        gap: ``Σ (x − x_ii)`` over all, or None without label smoothing.
    """

    top: Array
    mass: Array
    num_extra: Array | None
    extra_gap: Array | None
    gap: Array | None


class Target(NamedTuple):
    """What the gradient of one row's logits needs: ``exp(x − shift)`` is the weighted softmax.

    Attributes:
        shift: ``[n]``: ``lse − log(weight)``.
        share: ``[n]``: weight times the target of each further positive, or None without ids.
    """

    shift: Array
    share: Array | None


class Outcome(NamedTuple):
    """A row's loss, and ``dloss/dx_ii``: both ``[n]`` and unweighted."""

    loss: Array
    pair_slope: Array


def no_stats(zero: Array, *, ids: bool, smoothing: bool) -> RowStats:
    """The statistics of rows that have met nothing yet, from ``[n]`` zeros."""
    return RowStats(
        jnp.full_like(zero, -jnp.inf), zero, zero if ids else None, zero if ids else None, zero if smoothing else None
    )


def observe(stats: RowStats, x: Array, pair: Array | None, off: Array, same: Array | None, axis: int) -> RowStats:
    """Add a tile to its rows' statistics.

    Args:
        stats: The ``[rows]`` statistics so far.
        x: ``[rows, cols]`` logits (``[cols, rows]`` for axis 0), −∞ where the pair is on the diagonal or dropped.
        pair: ``[rows]`` logits of the rows' own pairs; None where no gap is asked for.
        off: Where ``x`` counts.
        same: Where a pair is a further positive, or None.
        axis: The axis to sum over.

    Returns:
        The statistics with the tile.
    """
    # The shift cancels in exact arithmetic, so nothing differentiates through it.
    top = lax.stop_gradient(x.max(axis))
    mass = jnp.exp(x - jnp.expand_dims(_finite(top), axis)).sum(axis)
    gap = num_extra = extra_gap = None
    if pair is not None and (stats.gap is not None or same is not None):
        gaps = jnp.where(off, x - jnp.expand_dims(pair, axis), 0)
        if stats.gap is not None:
            gap = gaps.sum(axis)
        if same is not None:
            extra = same & off
            num_extra, extra_gap = extra.sum(axis).astype(x.dtype), jnp.where(extra, gaps, 0).sum(axis)
    return merge(stats, RowStats(top, mass, num_extra, extra_gap, gap))


def merge(left: RowStats, right: RowStats) -> RowStats:
    """Join the statistics of the same rows over two sets of columns."""
    top = jnp.maximum(left.top, right.top)
    finite = _finite(top)
    mass = left.mass * jnp.exp(left.top - finite) + right.mass * jnp.exp(right.top - finite)
    rest: Any = jax.tree.map(jnp.add, left[2:], right[2:])
    return RowStats(top, mass, *rest)


def finish(
    stats: RowStats, pair: Array, *, weight: float, label_smoothing: float, num_kept: Array
) -> tuple[Outcome, Target]:
    """Turn complete statistics into each row's loss and what its gradient needs.

    With ``P`` positives in the row, its target is ``(1 − ε)/P`` on each plus ``ε/N`` on all ``N`` kept columns.
    """
    alone = stats.mass == 0
    lse_off = jnp.where(alone, -jnp.inf, stats.top + jnp.log(jnp.where(alone, 1, stats.mass)))
    lead = lse_off - pair
    above = jax.nn.softplus(lead)
    loss, slope, share = above, -jax.nn.sigmoid(lead), None
    if stats.num_extra is not None and stats.extra_gap is not None:
        each = (1 - label_smoothing) / (1 + stats.num_extra)
        loss -= each * stats.extra_gap
        slope += each * stats.num_extra
        share = weight * each
    if stats.gap is not None:
        loss -= label_smoothing / num_kept * stats.gap
        slope += label_smoothing * (1 - 1 / num_kept)
    return Outcome(loss, slope), Target(pair + above - jnp.log(weight), share)


def _finite(top: Array) -> Array:
    """The shift of an empty row is 0: −∞ − (−∞) would be NaN."""
    return jnp.where(top == -jnp.inf, 0, top)
