"""A number for each array, by which one that was saved is known again: a flipped bit changes it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def fingerprints(tree: Any) -> list[int]:
    """One number below 2³² for each array of a tree, in the order of its leaves.

    It is the sum, modulo 2³², of the array's elements as whole numbers, each times an odd number of its place: a change
    of one element is always seen, one of several is missed once in 2³² times. Sharding and order of summing change
    nothing.

    Args:
        tree: of arrays of at most 32 bits an element, on any devices.

    Example:
        >>> before, after = fingerprints([jnp.arange(4.0), jnp.arange(4.0).at[2].set(2.0000002)])
        >>> before == after
        False
    """
    return [int(value) for value in jax.device_get(_fingerprints(jax.tree.leaves(tree)))]


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(x: jax.Array) -> jax.Array:
    words = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    place = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
