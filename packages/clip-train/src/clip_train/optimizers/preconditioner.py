"""What Shampoo multiplies a gradient's blocks by: along each dim, an inverse root of its second moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from clip_train.optimizers.spread import Spread


class Blocks(NamedTuple):
    """What Shampoo keeps of all blocks of one shape; one array for each dim.

    Blocks that only fill up are zero, and stay so: they come and go as the number of devices does.

    Attributes:
        statistics: sums of gradients' second moments along the dim, float32 `[n, size, size]`.
        roots: inverse roots of them, as of the last time that they were taken, likewise.
    """

    statistics: tuple[jax.Array, ...]
    roots: tuple[jax.Array, ...]


Matrices = dict[str, tuple[jax.Array, ...]]
"""By the shape of the blocks, for each dim `[n, size, size]`."""


def first_blocks(shape: tuple[int, ...], num: int, *, fill: int, epsilon: float) -> Blocks:
    """Statistics of `epsilon` and roots that change nothing, of `num` blocks of a shape; `fill` of zeros follow."""
    is_real = (jnp.arange(num + fill) < num).astype(jnp.float32)[:, None, None]
    eyes = tuple(is_real * jnp.eye(size, dtype=jnp.float32) for size in shape)
    return Blocks(tuple(epsilon * eye for eye in eyes), eyes)


def add_moments(statistics: tuple[jax.Array, ...], blocks: jax.Array, beta2: float) -> tuple[jax.Array, ...]:
    """The statistics with the second moments of one more gradient's blocks `[n, *shape]`."""

    def add(dim: int, old: jax.Array) -> jax.Array:
        flat = jnp.moveaxis(blocks, 1 + dim, 1).reshape(*blocks.shape[:1], blocks.shape[1 + dim], -1)
        new = jnp.einsum("nax,nbx->nab", flat, flat)
        return old + new if beta2 == 1 else beta2 * old + (1 - beta2) * new

    return tuple(add(dim, old) for dim, old in enumerate(statistics))


def take_roots(
    statistics: Matrices,
    old: Matrices,
    *,
    num_blocks: Callable[[str], int],
    spread: Spread,
    root: Callable[..., tuple[jax.Array, jax.Array]],
    failure_threshold: float,
) -> Matrices:
    """The roots of all statistics: matrices of one size and one exponent together, whatever they belong to.

    Args:
        statistics: of which.
        old: the roots until now; they stay where a new one fails, and where a block only fills up.
        num_blocks: of each shape, without what fills up.
        spread: over which the work is divided.
        root: matrices and `p` to their inverse p-th roots and the errors of those, as `inverse_roots`.
        failure_threshold: a root with a larger error fails.
    """
    batches: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for key, arrays in statistics.items():
        for dim, array in enumerate(arrays):
            batches.setdefault((array.shape[-1], 2 * len(arrays)), []).append((key, dim))
    roots = {key: list(arrays) for key, arrays in old.items()}
    for (_, p), members in batches.items():
        counts = [num_blocks(key) for key, _ in members]
        joined = jnp.concatenate([statistics[key][dim][:num] for (key, dim), num in zip(members, counts, strict=True)])
        new, errors = spread.map(lambda matrices, p=p: root(matrices, p=p), joined)
        good = (errors < failure_threshold)[:, None, None]  # False for NaN too
        first = 0
        for (key, dim), num in zip(members, counts, strict=True):
            here = slice(first, first + num)
            kept = jnp.where(good[here], new[here], old[key][dim][:num])
            roots[key][dim] = jnp.concatenate([kept, old[key][dim][num:]])
            first += num
    return {key: spread.hold(tuple(arrays)) for key, arrays in roots.items()}


def precondition(blocks: jax.Array, roots: tuple[jax.Array, ...]) -> jax.Array:
    """Blocks `[n, *shape]`, multiplied along each dim by its root."""
    for root in roots:
        # Each product takes the first dim and puts it last: after all of them the order is the old one.
        blocks = jnp.einsum("na...,nab->n...b", blocks, root)
    return blocks
