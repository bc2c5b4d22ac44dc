"""A batch as several smaller ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def split_rows(rows: jax.Array, num: int) -> jax.Array:
    """Divide rows `[b, ...]` into `[num, b / num, ...]`; `join_rows` undoes it.

    Part i is rows i, i + num, …: each device's own rows divide evenly, so that nothing crosses devices.
    """
    return jnp.moveaxis(rows.reshape(rows.shape[0] // num, num, *rows.shape[1:]), 1, 0)


def join_rows(stacked: jax.Array) -> jax.Array:
    """Undo `split_rows`."""
    rows = jnp.moveaxis(stacked, 0, 1)
    return rows.reshape(-1, *rows.shape[2:])
