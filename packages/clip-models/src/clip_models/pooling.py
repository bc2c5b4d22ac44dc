"""From a sequence of hidden vectors to one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.attention import Attention
from clip_models.config import TextConfig, TransformerConfig
from clip_models.initializers import tower_initializers
from clip_models.mlp import Mlp
from clip_models.norm import LayerNorm


class MapHead(nnx.Module):
    """Multi-head attention pooling: a learnt probe attends to the sequence, then y + mlp(norm(y)).

    Args:
        config: of the tower.
        rngs: source of keys.

    References:
        Lee et al., Set Transformer, 2019; Zhai et al., Scaling Vision Transformers, 2022.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        probe_init = tower_initializers(config).probe
        self.probe = nnx.Param(probe_init(rngs.params(), (1, config.width), jnp.float32), axes=("queries", "embed"))
        self.attention = Attention(config, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Maps [b, t, d] to [b, d]."""
        probe = self.probe[...].astype(hidden.dtype)
        queries = jnp.broadcast_to(probe, (hidden.shape[0], *probe.shape))
        y = self.attention(queries, hidden)
        return (y + self.mlp(self.norm(y)))[:, 0]


def pool_text(config: TextConfig, hidden: jax.Array, input_ids: jax.Array) -> jax.Array:
    """Takes the hidden vector that stands for the text.

    Where ``first_eos`` finds no end token in a row, it takes the first position, as transformers does.

    Args:
        config: of the text tower.
        hidden: [b, t, d].
        input_ids: int [b, t].

    Returns:
        [b, d].
    """
    if config.pool == "last":
        return hidden[:, -1]
    marked = input_ids if config.pool == "argmax" else input_ids == config.eos_token_id
    return jnp.take_along_axis(hidden, marked.argmax(-1)[:, None, None], axis=1)[:, 0]
