"""The text tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.config import ComputeConfig, TextConfig
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear
from clip_models.norm import LayerNorm
from clip_models.pooling import pool_text
from clip_models.transformer import scan_blocks, stack_blocks


class TextTower(nnx.Module):
    """A transformer over tokens, from ids to a pooled vector.

    Args:
        config: what it is.
        compute: how it runs.
        projection_dim: size of the projection to the shared embedding; None: there is none.
        rngs: source of keys.
    """

    def __init__(self, config: TextConfig, compute: ComputeConfig, *, projection_dim: int | None, rngs: nnx.Rngs):
        init = tower_initializers(config)
        self.token_embedding = nnx.Param(
            init.token(rngs.params(), (config.vocab_size, config.width), jnp.float32), axes=("vocab", "embed")
        )
        self.position_embedding = nnx.Param(
            init.text_position(rngs.params(), (config.max_length, config.width), jnp.float32),
            axes=("positions", "embed"),
        )
        self.blocks = stack_blocks(config, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.projection = (
            Linear(
                config.width,
                projection_dim,
                axes=("embed", "projection"),
                kernel_init=init.projection,
                use_bias=config.projection_bias,
                rngs=rngs,
            )
            if projection_dim is not None
            else None
        )
        self.config = config
        self.compute = compute

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Runs the tower up to the pooled vector.

        Args:
            input_ids: int [b, t], t at most ``max_length``. An id beyond the vocabulary gives NaN.
            attention_mask: [b, t], 0 at tokens that no token may attend to. None: all may be.

        Returns:
            (pooled float32 [b, d], normalised hidden [b, t, d] in the compute dtype).
        """
        if input_ids.ndim != 2 or input_ids.shape[1] > self.config.max_length:
            raise ValueError(
                f"input_ids must be [batch, tokens], with at most max_length = {self.config.max_length} tokens; "
                f"got {list(input_ids.shape)}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}; "
                f"got {list(attention_mask.shape)}."
            )
        # fill, not clamp: a wrong id must not pass for the last word of the vocabulary
        x = jnp.take(self.token_embedding[...], input_ids, axis=0, mode="fill")
        x = (x + self.position_embedding[: input_ids.shape[1]]).astype(self.compute.dtype)
        mask = None if attention_mask is None else attention_mask.astype(bool)[:, None, None, :]
        hidden = self.norm(scan_blocks(self.blocks, x, compute=self.compute, mask=mask, causal=self.config.causal))
        return pool_text(self.config, hidden, input_ids).astype(jnp.float32), hidden

    def project(self, pooled: jax.Array) -> jax.Array:
        """Maps the pooled vector, float32 [b, d], to the shared embedding, [b, e], not normalised."""
        return pooled if self.projection is None else self.projection(pooled)
