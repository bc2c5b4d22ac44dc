"""The image tower."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.activations import in_use
from clip_models.config import ComputeConfig, VisionConfig
from clip_models.dropout import choose_patches, dropout
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear, tower_projection
from clip_models.norm import tower_norm
from clip_models.patches import check_images, patchify
from clip_models.pooling import MapHead, pool_mean
from clip_models.positions import (
    FactorizedPositions,
    Places,
    Rotation,
    image_positions,
    places_of_grid,
    places_of_shapes,
    resample,
    rotation2d,
    sincos2d,
)
from clip_models.transformer import scan_blocks, scan_blocks_at, stack_blocks


class VisionTower(nnx.Module):
    """A vision transformer, from pixels or patches to a pooled vector.

    Args:
        config: what it is.
        compute: how it runs.
        projection_dim: size of the projection to the shared embedding; None: there is none.
        rngs: source of keys.
    """

    def __init__(self, config: VisionConfig, compute: ComputeConfig, *, projection_dim: int | None, rngs: nnx.Rngs):
        init = tower_initializers(config)
        self.patch_embedding = Linear(
            config.patch_size**2 * 3,
            config.width,
            axes=("patch", "embed"),
            kernel_init=init.patch,
            use_bias=config.patch_bias,
            rngs=rngs,
        )
        self.position_embedding = image_positions(config, rngs=rngs)
        self.class_embedding = (
            nnx.Param(init.class_token(rngs.params(), (config.width,), jnp.float32), axes=("embed",))
            if config.class_token
            else None
        )
        self.registers = (
            nnx.Param(
                init.register(rngs.params(), (config.num_registers, config.width), jnp.float32),
                axes=("registers", "embed"),
            )
            if config.num_registers
            else None
        )
        self.embed_norm = tower_norm(config) if config.embed_norm else None
        self.blocks = stack_blocks(config, compute, rngs=rngs)
        self.norm = tower_norm(config)
        self.map_head = MapHead(config, compute, rngs=rngs) if config.pool == "map" else None
        self.projection = tower_projection(config, projection_dim, rngs=rngs)
        self.config = config
        self.compute = compute

    def __call__(
        self,
        pixel_values: jax.Array,
        *,
        pixel_attention_mask: jax.Array | None = None,
        spatial_shapes: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Runs the tower up to the pooled vector.

        Args:
            pixel_values: float [b, h, w, 3], normalised; h and w are ``image_size``, or anything if ``flexible``. Or,
                if ``flexible``, sequences of patches [b, p, patch_size² · 3], row by row.
            pixel_attention_mask: of sequences: [b, p], 0 at padding. None: what ``spatial_shapes`` leaves.
            spatial_shapes: of sequences: int [b, 2], rows and columns of each image.
            key: PRNG key of what training drops. None: nothing is dropped.

        Returns:
            (pooled float32 [b, k·d]; hidden [b, n, d] in the compute dtype: of the class token, the registers if they
            are kept, and the patches; bool [b, n], False at padding, or None: there is none). As in transformers,
            hidden is normalised unless ``final_norm`` is ``pooled``.
        """
        config = self.config
        check_images(config, pixel_values, pixel_attention_mask, spatial_shapes)
        patch_key, embed_key, blocks_key = (None, None, None) if key is None else jax.random.split(key, 3)
        if spatial_shapes is None:
            patches, grid = patchify(pixel_values.astype(self.compute.dtype), config.patch_size)
            places, mask = places_of_grid(*grid), None
        else:
            patches = pixel_values.astype(self.compute.dtype)
            places = places_of_shapes(spatial_shapes, patches.shape[1])
            mask = pixel_attention_mask
            if mask is None:
                mask = jnp.arange(patches.shape[1]) < spatial_shapes.prod(1, keepdims=True)
            mask = mask.astype(bool)

        x = self.patch_embedding(patches)
        if (positions := self._positions(places)) is not None:
            x = x + positions.astype(x.dtype)
        turned = self._rotation(places)
        if patch_key is not None and config.patch_dropout:
            chosen = choose_patches(patch_key, (x.shape[0], x.shape[1]), config.patch_dropout, mask)
            x, mask, turned = self._take_patches(chosen, x, mask, turned)
        x = self._prepend(x)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (self._num_before, 0)), constant_values=True)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = dropout(x, config.dropout, embed_key)
        inputs = {
            "config": config,
            "compute": self.compute,
            "key": blocks_key,
            "mask": None if mask is None else mask[:, None, None, :],
            "rotation": turned,
        }
        if config.pool == "cls":
            hidden, token = scan_blocks_at(self.blocks, x, 0, **inputs)
        else:
            hidden, token = scan_blocks(self.blocks, x, **inputs), None
        hidden, mask = self._drop_registers(hidden, mask)
        if config.final_norm == "hidden":
            hidden, token = self.norm(hidden), None if token is None else self.norm(token)
        return self._pool(hidden, mask, token), hidden, mask

    def _pool(self, hidden: jax.Array, mask: jax.Array | None, token: jax.Array | None) -> jax.Array:
        """Maps hidden vectors, or the class token's [b, d], to the pooled vector, float32 [b, k·d]."""
        config = self.config
        if token is not None:
            pooled = token
        elif self.map_head is not None:
            pooled = self.map_head(hidden, mask)
        else:
            first = int(bool(config.class_token))
            pooled = pool_mean(hidden[:, first:], None if mask is None else mask[:, first:])
        pooled = pooled.astype(jnp.float32)
        if config.final_norm == "pooled":
            pooled = self.norm(pooled)
        return pooled.reshape(pooled.shape[0], math.prod(pooled.shape[1:]))

    def project(self, pooled: jax.Array) -> jax.Array:
        """Maps the pooled vector, float32 [b, k·d], to the shared embedding, [b, e], not normalised."""
        return pooled if self.projection is None else self.projection(pooled)

    @property
    def _num_before(self) -> int:
        """Tokens before the patches: class token and registers."""
        return bool(self.config.class_token) + self.config.num_registers

    def _positions(self, places: Places) -> jax.Array | None:
        """What is added to the patches, float32 [b or 1, p, d]."""
        config = self.config
        if isinstance(self.position_embedding, FactorizedPositions):
            return self.position_embedding(places)
        if self.position_embedding is not None:
            return resample(in_use(self.position_embedding)[bool(config.class_token) :], config.grid, places)
        return sincos2d(config.width, config.grid, places) if config.positions == "sincos2d" else None

    def _rotation(self, places: Places) -> Rotation | None:
        config = self.config
        if config.positions != "rotary":
            return None
        return rotation2d(config.head_dim, config.rotary_base, config.grid, places, self._num_before)

    def _take_patches(
        self, chosen: jax.Array, x: jax.Array, mask: jax.Array | None, turned: Rotation | None
    ) -> tuple[jax.Array, jax.Array | None, Rotation | None]:
        """Keeps the chosen patches, int [b, k], of a batch."""
        x = jnp.take_along_axis(x, chosen[..., None], axis=1)
        if mask is not None:
            mask = jnp.take_along_axis(mask, chosen, axis=1)
        if turned is not None:
            before = jnp.broadcast_to(jnp.arange(self._num_before), (chosen.shape[0], self._num_before))
            tokens = jnp.concatenate([before, chosen + self._num_before], axis=1)[..., None]
            size = (chosen.shape[0], *turned.cos.shape[1:])
            turned = Rotation(*(jnp.take_along_axis(jnp.broadcast_to(part, size), tokens, axis=1) for part in turned))
        return x, mask, turned

    def _prepend(self, x: jax.Array) -> jax.Array:
        """Puts class token and registers before the patches, [b, p, d]."""
        parts = []
        if self.class_embedding is not None:
            token = in_use(self.class_embedding)
            if isinstance(self.position_embedding, nnx.Param):
                token = token + in_use(self.position_embedding)[0]
            parts.append(token[None])
        if self.registers is not None:
            parts.append(in_use(self.registers))
        before = [jnp.broadcast_to(part.astype(x.dtype), (x.shape[0], *part.shape)) for part in parts]
        return jnp.concatenate([*before, x], axis=1) if before else x

    def _drop_registers(self, hidden: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        if not config.num_registers or config.keep_registers:
            return hidden, mask
        tokens = slice(int(bool(config.class_token)), self._num_before)
        return jnp.delete(hidden, tokens, axis=1), None if mask is None else jnp.delete(mask, tokens, axis=1)
