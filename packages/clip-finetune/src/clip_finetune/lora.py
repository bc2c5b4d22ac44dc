"""Low-rank updates to a tower's matrices: the tower stays as it is, and two thin matrices are learned for each.

References:
    Hu et al., LoRA, arXiv 2106.09685: W + (alpha / r) · A · B, with B zero at first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clip_train.optimizers.names import name_of


def lora_init(tower: Any, key: jax.Array, *, rank: int) -> dict[str, dict[str, jax.Array]]:
    """First updates for the matrices of all blocks, which change nothing yet.

    Args:
        tower: its parameters; those named `blocks/…/kernel` are `[layers, in, out]`.
        key: of the draw.
        rank: r.

    Returns:
        For each matrix, by its name with dots, `a` `[layers, in, r]` and `b` `[layers, r, out]`.
    """
    found = {
        name_of(path).replace("/", "."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tower)
        if name_of(path).startswith("blocks/") and name_of(path).endswith("/kernel") and leaf.ndim == 3
    }
    keys = jax.random.split(key, len(found))
    return {
        name: {
            "a": jax.random.normal(k, (*leaf.shape[:2], rank), jnp.float32) * leaf.shape[1] ** -0.5,
            "b": jnp.zeros((leaf.shape[0], rank, leaf.shape[2]), jnp.float32),
        }
        for k, (name, leaf) in zip(keys, found.items(), strict=True)
    }


def lora_axes(updates: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Names of the axes of updates, which no rule of `clip_sharding` knows: each device has them whole."""
    names = {"a": ("layers", "lora_in", "lora_rank"), "b": ("layers", "lora_rank", "lora_out")}
    return {name: dict(names) for name in updates}


def lora_merge(tower: Any, updates: dict[str, dict[str, Any]], *, alpha: float) -> Any:
    """The tower with its updates added, a tree like it.

    Args:
        tower: its parameters.
        updates: from `lora_init`, or trained.
        alpha: they are scaled by this over their rank.
    """

    def add(path: tuple[Any, ...], leaf: Any) -> Any:
        update = updates.get(name_of(path).replace("/", "."))
        if update is None:
            return leaf
        return leaf + alpha / update["a"].shape[-1] * (update["a"] @ update["b"])

    return jax.tree_util.tree_map_with_path(add, tower)
