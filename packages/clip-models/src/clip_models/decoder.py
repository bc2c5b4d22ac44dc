"""The captioning decoder: a transformer over tokens whose blocks also attend to an image's hidden vectors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.attention import Attention
from clip_models.config import ComputeConfig, DecoderConfig
from clip_models.dropout import dropout
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear
from clip_models.norm import Norm, tower_norm
from clip_models.positions import Rotation, rotation, text_positions
from clip_models.text import embed_tokens
from clip_models.transformer import Block, layer_scale, scan_blocks, stack_blocks


class Cache(NamedTuple):
    """Keys and values of every block, for decoding token by token.

    Args:
        keys: of the tokens so far, [layers, b, t, heads, d / heads]; zero after them.
        values: likewise.
        image_keys: of the image, [layers, b, p, heads, d / heads].
        image_values: likewise.
    """

    keys: jax.Array
    values: jax.Array
    image_keys: jax.Array
    image_values: jax.Array


class DecoderBlock(Block):
    """A block that between its halves attends to an image: x + cross_attention(cross_norm(x), image).

    Args:
        config: of the decoder.
        compute: how it runs.
        image_width: size of the image's hidden vectors.
        rngs: source of keys.
    """

    def __init__(self, config: DecoderConfig, compute: ComputeConfig, *, image_width: int, rngs: nnx.Rngs):
        super().__init__(config, compute, rngs=rngs)
        self.cross_norm = tower_norm(config)
        self.cross_attention = Attention(config, compute, sequence_width=image_width, rngs=rngs)
        self.cross_attention_norm = tower_norm(config, scaled=True) if config.block == "normformer" else None
        self.cross_layer_scale = layer_scale(config)

    def __call__(
        self,
        x: jax.Array,
        *,
        image: jax.Array,
        image_mask: jax.Array | None = None,
        mask: jax.Array | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        key: jax.Array | None = None,
        depth_rate: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [b, t, d] to [b, t, d].

        Args:
            x: [b, t, d].
            image: [b, p, image_width].
            image_mask: bool [b, 1, 1, p], False at what no token may see. None: all may be seen.
            mask: as in :class:`Block`.
            causal: as in :class:`Block`.
            rotation: as in :class:`Block`.
            key: as in :class:`Block`.
            depth_rate: as in :class:`Block`.
        """
        keys = (None,) * 5 if key is None else jax.random.split(key, 5)
        y = self.norm1(x)
        y = self.attention(y, y, mask=mask, causal=causal, rotation=rotation, key=keys[0])
        x = self._add(x, y, self.attention_norm, self.layer_scale1, keys[1], depth_rate)
        y = self.cross_attention(self.cross_norm(x), image, mask=image_mask, key=keys[2])
        x = self._add(x, y, self.cross_attention_norm, self.cross_layer_scale, keys[3], depth_rate)
        return self._add(x, self.mlp(self.norm2(x)), None, self.layer_scale2, keys[4], depth_rate)

    def step(
        self,
        x: jax.Array,
        cache: Cache,
        index: jax.Array,
        *,
        image_mask: jax.Array | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Decodes one token.

        Args:
            x: [b, 1, d].
            cache: of this block, without the dim of layers.
            index: int (), position of the token.
            image_mask: as in :meth:`__call__`.
            rotation: of that position.

        Returns:
            [b, 1, d], and the token's own keys and values, each [b, 1, heads, d / heads].
        """
        y = self.norm1(x)
        own = self.attention.keys_and_values(y, rotation)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cached, new, index, axis=1)
            for cached, new in zip((cache.keys, cache.values), own, strict=True)
        )
        seen = (jnp.arange(keys.shape[1]) <= index)[None, None, None]
        y = self.attention.attend(self.attention.queries(y, rotation), keys, values, mask=seen)
        x = self._add(x, y, self.attention_norm, self.layer_scale1)
        queries = self.cross_attention.queries(self.cross_norm(x))
        y = self.cross_attention.attend(queries, cache.image_keys, cache.image_values, mask=image_mask)
        x = self._add(x, y, self.cross_attention_norm, self.cross_layer_scale)
        return self._add(x, self.mlp(self.norm2(x)), None, self.layer_scale2), own

    def _add(
        self,
        x: jax.Array,
        y: jax.Array,
        norm: Norm | None,
        scale: nnx.Param | None,
        key: jax.Array | None = None,
        depth_rate: jax.Array | None = None,
    ) -> jax.Array:
        return x + self._branch(y if norm is None else norm(y), scale, key, depth_rate)


class Decoder(nnx.Module):
    """A transformer over tokens and an image, from ids to the logits of the ids that follow.

    Args:
        config: what it is.
        compute: how it runs.
        image_width: size of the image's hidden vectors.
        rngs: source of keys.
    """

    def __init__(self, config: DecoderConfig, compute: ComputeConfig, *, image_width: int, rngs: nnx.Rngs):
        init = tower_initializers(config)
        self.token_embedding = nnx.Param(
            init.token(rngs.params(), (config.vocab_size, config.width), jnp.float32), axes=("vocab", "embed")
        )
        self.position_embedding = text_positions(config, rngs=rngs)
        block = functools.partial(DecoderBlock, image_width=image_width)
        self.blocks = stack_blocks(config, compute, rngs=rngs, block=block)
        self.norm = tower_norm(config)
        self.head = (
            None
            if config.tied_embedding
            else Linear(
                config.width,
                config.vocab_size,
                axes=("embed", "vocab"),
                kernel_init=init.projection,
                use_bias=False,
                rngs=rngs,
            )
        )
        self.config = config
        self.compute = compute

    def __call__(
        self,
        input_ids: jax.Array,
        image: jax.Array,
        *,
        image_mask: jax.Array | None = None,
        parallel: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the token that follows each.

        Args:
            input_ids: int [b, t], t at most ``max_length``. An id outside the vocabulary gives NaN.
            image: [b, p, image_width].
            image_mask: bool [b, p], False at what no token may see. None: all may be seen.
            parallel: bool [b]; True where every position sees every other. None: none does.
            key: PRNG key of what training drops. None: nothing is dropped.

        Returns:
            float32 logits [b, t, vocab_size].
        """
        config = self.config
        embedding_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        positions = jnp.arange(input_ids.shape[1])
        mask = None
        if parallel is not None:
            earlier = positions[:, None] >= positions
            mask = earlier | parallel[:, None, None, None]
        x = scan_blocks(
            self.blocks,
            dropout(self._embed(input_ids, positions), config.dropout, embedding_key),
            config=config,
            compute=self.compute,
            key=blocks_key,
            image=image,
            image_mask=None if image_mask is None else image_mask[:, None, None],
            mask=mask,
            causal=mask is None,
            rotation=self._rotation(positions),
        )
        return self._logits(x)

    def start(self, image: jax.Array, max_length: int) -> Cache:
        """Makes the cache of captions that are empty yet: an image's keys and values are computed once.

        Args:
            image: [b, p, image_width].
            max_length: most tokens that a caption will have.
        """
        graphdef, layers = nnx.split(self.blocks)
        image_keys, image_values = jax.lax.map(
            lambda layer: nnx.merge(graphdef, layer).cross_attention.keys_and_values(image), layers
        )
        num_layers, b, _, *heads = image_keys.shape
        empty = jnp.zeros((num_layers, b, max_length, *heads), image_keys.dtype)
        return Cache(empty, empty, image_keys, image_values)

    def step(
        self, tokens: jax.Array, index: jax.Array, cache: Cache, *, image_mask: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Predicts the token that follows one, after those in the cache.

        Args:
            tokens: int [b].
            index: int (), their position.
            cache: of the positions before.
            image_mask: as in :meth:`__call__`.

        Returns:
            float32 logits [b, vocab_size], and the cache with this position.
        """
        graphdef, layers = nnx.split(self.blocks)
        turned = self._rotation(index[None])
        image_mask = None if image_mask is None else image_mask[:, None, None]

        def step(x: jax.Array, layer: tuple[nnx.State, Cache]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            weights, cached = layer
            block = nnx.merge(graphdef, weights)
            return block.step(x, cached, index, image_mask=image_mask, rotation=turned)

        x, new = jax.lax.scan(step, self._embed(tokens[:, None], index[None]), (layers, cache))
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cached, own, index, axis=2)
            for cached, own in zip((cache.keys, cache.values), new, strict=True)
        )
        return self._logits(x)[:, 0], cache._replace(keys=keys, values=values)

    def _embed(self, input_ids: jax.Array, positions: jax.Array) -> jax.Array:
        x = embed_tokens(self.token_embedding[...], input_ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding[...][positions]
        return x.astype(self.compute.dtype)

    def _rotation(self, positions: jax.Array) -> Rotation | None:
        if self.config.positions != "rotary":
            return None
        return rotation(positions[None], self.config.head_dim, self.config.rotary_base)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.norm(x)
        kernel = self.token_embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
