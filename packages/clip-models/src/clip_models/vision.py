"""The image tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.config import ComputeConfig, VisionConfig
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear
from clip_models.norm import LayerNorm
from clip_models.pooling import MapHead
from clip_models.transformer import scan_blocks, stack_blocks


class VisionTower(nnx.Module):
    """A vision transformer, from pixels to a pooled vector.

    Args:
        config: what it is.
        compute: how it runs.
        projection_dim: size of the bias-free projection to the shared embedding; None: there is none.
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
        self.position_embedding = nnx.Param(
            init.image_position(rngs.params(), (config.num_tokens, config.width), jnp.float32),
            axes=("positions", "embed"),
        )
        self.class_embedding = (
            nnx.Param(init.class_token(rngs.params(), (config.width,), jnp.float32), axes=("embed",))
            if config.pool == "cls"
            else None
        )
        self.embed_norm = LayerNorm(config.width, eps=config.norm_eps) if config.embed_norm else None
        self.blocks = stack_blocks(config, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.map_head = MapHead(config, rngs=rngs) if config.pool == "map" else None
        self.projection = (
            Linear(
                config.width,
                projection_dim,
                axes=("embed", "projection"),
                kernel_init=init.projection,
                use_bias=False,
                rngs=rngs,
            )
            if projection_dim is not None
            else None
        )
        self.config = config
        self.compute = compute

    def __call__(self, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Runs the tower up to the pooled vector.

        Args:
            pixel_values: float [b, h, w, 3], normalised; h and w are ``image_size``.

        Returns:
            (pooled float32 [b, d], hidden [b, p, d] in the compute dtype). As in transformers, hidden is normalised,
            except with a class token, where the norm is applied to the pooled vector alone.
        """
        config = self.config
        expected = (*config.image_shape, 3)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(
                f"pixel_values must be [batch, {', '.join(map(str, expected))}] (height, width, channels); "
                f"got {list(pixel_values.shape)}."
            )
        if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
            raise ValueError(
                f"pixel_values must be normalised floats, got {pixel_values.dtype}: "
                "use preprocess_images, or (pixels / 255 - mean) / std."
            )
        x = self.patch_embedding(_patchify(pixel_values.astype(self.compute.dtype), config.patch_size))
        if self.class_embedding is not None:
            token = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.position_embedding[...].astype(x.dtype)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        hidden = scan_blocks(self.blocks, x, compute=self.compute)
        if config.pool == "cls":
            return self.norm(hidden[:, 0].astype(jnp.float32)), hidden
        hidden = self.norm(hidden)
        if self.map_head is not None:
            return self.map_head(hidden).astype(jnp.float32), hidden
        return hidden.astype(jnp.float32).mean(1), hidden

    def project(self, pooled: jax.Array) -> jax.Array:
        """Maps the pooled vector, float32 [b, d], to the shared embedding, [b, e], not normalised."""
        return pooled if self.projection is None else self.projection(pooled)


def _patchify(pixel_values: jax.Array, patch_size: int) -> jax.Array:
    """Cuts [b, h, w, 3] into [b, p, patch_size² · 3], row by row, whole patches only."""
    b, h, w, c = pixel_values.shape
    rows, columns = h // patch_size, w // patch_size
    x = pixel_values[:, : rows * patch_size, : columns * patch_size]
    x = x.reshape(b, rows, patch_size, columns, patch_size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * columns, patch_size**2 * c)
