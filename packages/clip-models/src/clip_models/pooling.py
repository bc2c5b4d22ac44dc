"""From a sequence of hidden vectors to one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.activations import in_use
from clip_models.attention import Attention
from clip_models.config import ComputeConfig, TextConfig, VisionConfig
from clip_models.initializers import tower_initializers
from clip_models.mlp import Mlp
from clip_models.norm import tower_norm


class MapHead(nnx.Module):
    """Multi-head attention pooling: learnt probes attend to the sequence, then y + mlp(norm(y)).

    Args:
        config: of the tower.
        compute: how it runs.
        rngs: source of keys.

    References:
        Lee et al., Set Transformer, 2019; Zhai et al., Scaling Vision Transformers, 2022.
    """

    def __init__(self, config: VisionConfig | TextConfig, compute: ComputeConfig, *, rngs: nnx.Rngs):
        probe_init = tower_initializers(config).probe
        self.probe = nnx.Param(
            probe_init(rngs.params(), (config.num_queries, config.width), jnp.float32), axes=("queries", "embed")
        )
        self.attention = Attention(config, compute, rngs=rngs)
        self.norm = tower_norm(config)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Pools.

        Args:
            hidden: [b, t, d].
            mask: bool [b, t], False at what no probe may see. None: all may be seen.

        Returns:
            [b, k, d], one vector for each probe.
        """
        probe = in_use(self.probe, hidden.dtype)
        queries = jnp.broadcast_to(probe, (hidden.shape[0], *probe.shape))
        y = self.attention(queries, hidden, mask=None if mask is None else mask[:, None, None, :])
        return y + self.mlp(self.norm(y))


def pool_mean(hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Averages, in float32.

    Args:
        hidden: [b, t, d].
        mask: bool [b, t], False at what does not count. None: all count.

    Returns:
        float32 [b, d]; zero where nothing counts.
    """
    x = hidden.astype(jnp.float32)
    if mask is None:
        return x.mean(1)
    return jnp.where(mask[..., None], x, 0).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)


def token_of_text(config: TextConfig, input_ids: jax.Array) -> int | jax.Array:
    """Finds the token that stands for the text.

    Where ``first_eos`` finds no end token in a row, it takes the first position, as transformers does.

    Args:
        config: of the text tower; its ``pool`` is ``last``, ``argmax`` or ``first_eos``.
        input_ids: int [b, t].

    Returns:
        Its position: int [b], or -1 for the last of all.
    """
    if config.pool == "last":
        return -1
    marked = input_ids if config.pool == "argmax" else input_ids == config.eos_token_id
    return marked.argmax(-1)
