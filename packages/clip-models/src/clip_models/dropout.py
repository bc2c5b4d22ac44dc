"""What training drops at random: elements, halves of blocks, patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets elements to zero with probability ``rate``, and scales the others so that the mean stays.

    Args:
        x: any array.
        rate: in [0, 1).
        key: PRNG key. None: nothing is dropped.
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def drop_path(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Sets whole samples to zero with probability ``rate``, and scales the others so that the mean stays.

    Args:
        x: [b, t, d].
        rate: float (), in [0, 1).
        key: PRNG key.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1))
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)


def choose_patches(key: jax.Array, shape: tuple[int, int], rate: float, mask: jax.Array | None) -> jax.Array:
    """Draws the patches that are kept of each image, padding last.

    Args:
        key: PRNG key.
        shape: (b, p), images and patches of each.
        rate: share of the patches that are left out.
        mask: bool [b, p], False at padding; None: there is none.

    Returns:
        int [b, k], indices in rising order.
    """
    num_kept = max(1, int(shape[1] * (1 - rate)))
    scores = jax.random.uniform(key, shape)
    if mask is not None:
        scores = jnp.where(mask, scores, 2.0)
    return jnp.sort(jnp.argsort(scores, axis=1)[:, :num_kept], axis=1)
