"""The text tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.activations import in_use
from clip_models.config import ComputeConfig, TextConfig
from clip_models.dropout import dropout
from clip_models.initializers import tower_initializers
from clip_models.linear import tower_projection
from clip_models.norm import tower_norm
from clip_models.pooling import MapHead, pool_mean, token_of_text
from clip_models.positions import rotation, text_positions
from clip_models.transformer import scan_blocks, scan_blocks_at, stack_blocks


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
        self.position_embedding = text_positions(config, rngs=rngs)
        self.blocks = stack_blocks(config, compute, rngs=rngs)
        self.norm = tower_norm(config)
        self.map_head = MapHead(config, compute, rngs=rngs) if config.pool == "map" else None
        self.projection = tower_projection(config, projection_dim, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the tower up to the pooled vector.

        Args:
            input_ids: int [b, t], t at most ``max_length``. An id outside the vocabulary gives NaN.
            attention_mask: [b, t], 0 at tokens that no token may attend to. None: all may be.
            key: PRNG key of what training drops. None: nothing is dropped.

        Returns:
            (pooled float32 [b, k·d], normalised hidden [b, t, d] in the compute dtype).
        """
        config = self.config
        check_texts(config.max_length, input_ids, attention_mask)
        embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x = embed_tokens(in_use(self.token_embedding), input_ids)
        turned = None
        if self.position_embedding is not None:
            x = x + in_use(self.position_embedding)[: input_ids.shape[1]]
        else:
            turned = rotation(jnp.arange(input_ids.shape[1])[None], config.head_dim, config.rotary_base)
        x = dropout(x.astype(self.compute.dtype), config.dropout, embed_key)
        mask = None if attention_mask is None else attention_mask.astype(bool)
        inputs = {
            "config": config,
            "compute": self.compute,
            "key": blocks_key,
            "mask": None if mask is None else mask[:, None, None, :],
            "causal": config.causal,
            "rotation": turned,
        }
        if config.pool in ("map", "gap"):
            hidden = self.norm(scan_blocks(self.blocks, x, **inputs))
            pooled = pool_mean(hidden, mask) if self.map_head is None else self.map_head(hidden, mask)
            pooled = pooled.reshape(len(pooled), -1)
        else:
            hidden, token = scan_blocks_at(self.blocks, x, token_of_text(config, input_ids), **inputs)
            hidden, pooled = self.norm(hidden), self.norm(token)
        return pooled.astype(jnp.float32), hidden

    def project(self, pooled: jax.Array) -> jax.Array:
        """Maps the pooled vector, float32 [b, k·d], to the shared embedding, [b, e], not normalised."""
        return pooled if self.projection is None else self.projection(pooled)


def embed_tokens(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Looks tokens up.

    Args:
        table: [vocab_size, d].
        ids: int [b, t].

    Returns:
        [b, t, d]; NaN where an id is outside the vocabulary, so that none passes for another word.
    """
    outside = len(table)  # negative ids would count from the end
    return jnp.take(table, jnp.where(ids < 0, outside, ids), axis=0, mode="fill")


def check_texts(max_length: int, input_ids: jax.Array, attention_mask: jax.Array | None) -> None:
    """Refuses tokens and masks of wrong shapes."""
    if input_ids.ndim != 2 or input_ids.shape[1] > max_length:
        raise ValueError(
            f"input_ids must be [batch, tokens], with at most max_length = {max_length} tokens; "
            f"got {list(input_ids.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}; "
            f"got {list(attention_mask.shape)}."
        )
