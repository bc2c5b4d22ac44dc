"""Exact gradients of a contrastive loss over a batch whose activations do not fit at once.

Every microbatch is encoded without keeping activations; the loss and its gradient with respect to the embeddings are
taken once, over the whole batch; then each microbatch is encoded again and its share of that gradient pulled back. The
negatives are those of the whole batch, and the gradient is the unaccumulated one.

References:
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983 (GradCache).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clip_train.microbatches import join_rows, split_rows
from clip_train.objective import ContrastiveObjective, Metrics


def accumulated_value_and_grad(
    objective: ContrastiveObjective, num_microbatches: int, params: Any, batch: Any, key: jax.Array
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """What `jax.value_and_grad(objective, has_aux=True)` gives, with the activations of one microbatch at a time.

    Args:
        objective: the two halves.
        num_microbatches: how many; it divides b.
        params: a tree of arrays.
        batch: a tree of arrays `[b, ...]`.
        key: each microbatch gets its own, the same in both passes, so that dropout is replayed.

    Returns:
        `((loss, metrics), gradients)`.
    """
    microbatches = jax.tree.map(lambda rows: split_rows(rows, num_microbatches), batch)
    keys = jax.random.split(key, num_microbatches)

    def encode(_: None, slice_: tuple[Any, jax.Array]) -> tuple[None, Any]:
        return None, objective.encode(params, *slice_)

    _, stacked = jax.lax.scan(encode, None, (microbatches, keys))
    embeds = jax.tree.map(join_rows, stacked)
    (loss, metrics), (embed_grads, direct_grads) = jax.value_and_grad(objective.loss, argnums=(0, 1), has_aux=True)(
        embeds, params
    )
    cotangents = jax.tree.map(lambda rows: split_rows(rows, num_microbatches), embed_grads)

    def pull_back(grads: Any, slice_: tuple[Any, jax.Array, Any]) -> tuple[Any, None]:
        microbatch, micro_key, cotangent = slice_
        _, vjp = jax.vjp(lambda p: objective.encode(p, microbatch, micro_key), params)
        return jax.tree.map(jnp.add, grads, vjp(cotangent)[0]), None

    grads, _ = jax.lax.scan(pull_back, direct_grads, (microbatches, keys, cotangents))
    return (loss, metrics), grads
