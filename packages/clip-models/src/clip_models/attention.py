"""Multi-head attention."""

from __future__ import annotations

import jax
from flax import nnx

from clip_models.config import TransformerConfig
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear


class Attention(nnx.Module):
    """Multi-head attention from queries to a sequence, with biases; the softmax runs in float32.

    Args:
        config: of the tower; its width is that of queries, sequence and output.
        rngs: source of keys.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        init = tower_initializers(config)

        def projection() -> Linear:
            return Linear(config.width, config.width, axes=("embed", "heads"), kernel_init=init.attention_in, rngs=rngs)

        self.query, self.key, self.value = projection(), projection(), projection()
        self.out = Linear(
            config.width, config.width, axes=("heads", "embed"), kernel_init=init.attention_out, rngs=rngs
        )
        self.num_heads = config.num_heads

    def __call__(
        self, queries: jax.Array, sequence: jax.Array, *, mask: jax.Array | None = None, causal: bool = False
    ) -> jax.Array:
        """Attends.

        Args:
            queries: [b, q, d].
            sequence: [b, t, d].
            mask: bool, broadcastable to [b, heads, q, t]; True where a query may look.
            causal: whether query i looks no further than position i.

        Returns:
            [b, q, d].
        """

        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], self.num_heads, -1)  # [b, t, heads, d / heads]

        attended = jax.nn.dot_product_attention(
            split_heads(self.query(queries)),
            split_heads(self.key(sequence)),
            split_heads(self.value(sequence)),
            mask=mask,
            is_causal=causal,
        )
        return self.out(attended.reshape(queries.shape))
