"""Multi-head attention."""

from __future__ import annotations

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from clip_models.config import ComputeConfig, TransformerConfig
from clip_models.dot_product import dot_product_attention
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear
from clip_models.norm import Norm
from clip_models.positions import Rotation, rotate


class Attention(nnx.Module):
    """Multi-head attention from queries to a sequence; the softmax runs in float32.

    Args:
        config: of the tower; its width is that of queries and output.
        compute: how it runs.
        sequence_width: size of what is attended to. None: the tower's width.
        rngs: source of keys.
    """

    def __init__(
        self,
        config: TransformerConfig,
        compute: ComputeConfig,
        *,
        sequence_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        init = tower_initializers(config)
        sequence_width = sequence_width or config.width

        def projection(in_features: int) -> Linear:
            return Linear(
                in_features,
                config.width,
                axes=("embed", "heads"),
                kernel_init=init.attention_in,
                use_bias=config.use_bias,
                rngs=rngs,
            )

        def head_norm() -> Norm | None:
            if not config.qk_norm:
                return None
            return Norm(config.head_dim, kind="rmsnorm", eps=config.norm_eps, use_bias=False, axes=("head_dim",))

        self.query = projection(config.width)
        self.key, self.value = projection(sequence_width), projection(sequence_width)
        self.query_norm, self.key_norm = head_norm(), head_norm()
        self.out = Linear(
            config.width,
            config.width,
            axes=("heads", "embed"),
            kernel_init=init.attention_out,
            use_bias=config.use_bias,
            rngs=rngs,
        )
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.compute = compute

    def __call__(
        self,
        queries: jax.Array,
        sequence: jax.Array,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
            queries: [b, q, d].
            sequence: [b, t, sequence_width].
            mask: bool, broadcastable to [b, heads, q, t]; True where a query may look.
            causal: whether query i looks no further than position i.
            rotation: turns queries and keys by their positions, which are then the same. None: nothing is turned.
            key: PRNG key of the dropout of weights. None: nothing is dropped.

        Returns:
            [b, q, d].
        """
        keys, values = self.keys_and_values(sequence, rotation)
        return self.attend(self.queries(queries, rotation), keys, values, mask=mask, causal=causal, key=key)

    def queries(self, x: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        """Projects [b, q, d] to queries [b, q, heads, d / heads], normalised and turned."""
        return self._turned(checkpoint_name(self.query(x), "query"), self.query_norm, rotation)

    def keys_and_values(self, x: jax.Array, rotation: Rotation | None = None) -> tuple[jax.Array, jax.Array]:
        """Projects [b, t, d] to keys, normalised and turned, and values, each [b, t, heads, d / heads]."""
        keys = self._turned(checkpoint_name(self.key(x), "key"), self.key_norm, rotation)
        return keys, self._split(checkpoint_name(self.value(x), "value"))

    def attend(
        self,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Maps what :meth:`queries` and :meth:`keys_and_values` gave to the output, [b, q, d]."""
        attended = dot_product_attention(
            queries,
            keys,
            values,
            mask=mask,
            causal=causal,
            implementation=self.compute.attention,
            float32_logits=self.compute.float32_logits,
            dropout=self.dropout if key is not None else 0.0,
            key=key,
        )
        return checkpoint_name(self.out(attended.reshape(*attended.shape[:2], -1)), "out")

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)  # [b, t, heads, d / heads]

    def _turned(self, x: jax.Array, norm: Norm | None, rotation: Rotation | None) -> jax.Array:
        x = self._split(x)
        if norm is not None:
            x = norm(x)
        return x if rotation is None else rotate(x, rotation)
