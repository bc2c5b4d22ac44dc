"""Images as sequences of patches, and whether what arrives is either."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clip_models.config import VisionConfig


def patchify(pixel_values: jax.Array, patch_size: int) -> tuple[jax.Array, tuple[int, int]]:
    """Cuts images into patches, row by row, whole patches only.

    Args:
        pixel_values: [b, h, w, 3].
        patch_size: pixels.

    Returns:
        ([b, p, patch_size² · 3], (rows, columns)).
    """
    b, h, w, c = pixel_values.shape
    rows, columns = h // patch_size, w // patch_size
    x = pixel_values[:, : rows * patch_size, : columns * patch_size]
    x = x.reshape(b, rows, patch_size, columns, patch_size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * columns, patch_size**2 * c), (rows, columns)


def check_images(
    config: VisionConfig,
    pixel_values: jax.Array,
    pixel_attention_mask: jax.Array | None,
    spatial_shapes: jax.Array | None,
) -> None:
    """Refuses images, sequences of patches, masks and shapes that the tower does not take.

    Args:
        config: of the tower.
        pixel_values: as the tower takes them.
        pixel_attention_mask: likewise.
        spatial_shapes: likewise.

    Raises:
        ValueError: the rule, what arrived and what to do.
    """
    shape, patch_dim = pixel_values.shape, config.patch_size**2 * 3
    if pixel_values.ndim == 3:
        _check_sequences(config, shape, pixel_attention_mask, spatial_shapes)
    else:
        expected = "height, width, 3" if config.flexible else f"{', '.join(map(str, config.image_shape))}, 3"
        right = pixel_values.ndim == 4 and shape[3] == 3
        right &= min(shape[1:3]) >= config.patch_size if config.flexible else shape[1:3] == config.image_shape
        if not right:
            raise ValueError(
                f"pixel_values must be [batch, {expected}] (height, width, channels)"
                + (f", or sequences of patches [batch, patches, {patch_dim}]" if config.flexible else "")
                + f"; got {list(shape)}."
            )
        for name, given in (("pixel_attention_mask", pixel_attention_mask), ("spatial_shapes", spatial_shapes)):
            if given is not None:
                raise ValueError(f"{name} is of sequences of patches; pixel_values are images, {list(shape)}.")
    if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
        raise ValueError(
            f"pixel_values must be normalised floats, got {pixel_values.dtype}: "
            "use preprocess_images, or (pixels / 255 - mean) / std."
        )


def _check_sequences(
    config: VisionConfig,
    shape: tuple[int, ...],
    pixel_attention_mask: jax.Array | None,
    spatial_shapes: jax.Array | None,
) -> None:
    if not config.flexible:
        raise ValueError(
            f"pixel_values must be images [batch, {', '.join(map(str, config.image_shape))}, 3]; sequences of patches, "
            f"{list(shape)}, are for towers with flexible=True."
        )
    patch_dim = config.patch_size**2 * 3
    if shape[2] != patch_dim:
        raise ValueError(
            f"patches have patch_size² · 3 = {patch_dim} values: [batch, patches, {patch_dim}]; got {list(shape)}."
        )
    if spatial_shapes is None or spatial_shapes.shape != (shape[0], 2):
        got = None if spatial_shapes is None else list(spatial_shapes.shape)
        raise ValueError(
            f"sequences of patches need spatial_shapes, rows and columns of each image: [{shape[0]}, 2]; got {got}."
        )
    if pixel_attention_mask is not None and pixel_attention_mask.shape != shape[:2]:
        raise ValueError(
            f"pixel_attention_mask must be one number per patch, {list(shape[:2])}; "
            f"got {list(pixel_attention_mask.shape)}."
        )
