"""Pillow's resize on the device: boxes of pictures to another size, as two matrix products per picture."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Interpolation = Literal["bicubic", "bilinear"]

_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


def resize(
    images: jax.Array, boxes: jax.Array, size: tuple[int, int], *, interpolation: Interpolation = "bicubic"
) -> jax.Array:
    """Cut a box out of each picture and bring it to a size, antialiased.

    It is `Image.crop(box).resize(size)` of Pillow to within 2 levels: it too rounds to whole levels after each of two
    passes, and starts with the columns where the height loses more than twice as many pixels as the width, else with
    the rows (Pillow before 13 always starts with the rows).

    Args:
        images: uint8 or float `[b, h, w, 3]`, in [0, 255].
        boxes: int32 `[b, 4]`: top, left, height and width of each box, pixels, inside its picture.
        size: height and width of the result.
        interpolation: of the resize.

    Returns:
        float32 `[b, *size, 3]`, whole numbers in [0, 255].
    """
    square = images.shape[1] == images.shape[2] and size[0] == size[1]

    def one(image: jax.Array, box: jax.Array) -> jax.Array:
        top, left, height, width = box
        image = image.astype(jnp.float32)
        by_column = _weights(left, width, image.shape[1], size[1], interpolation)
        by_row = _weights(top, height, image.shape[0], size[0], interpolation)
        lost = height - size[0]
        columns_first = (lost > 0) & (lost > 2 * (width - size[1]))
        if not square:
            turned = _turn(_two_passes(_turn(image), by_row, by_column))
            return jnp.where(columns_first, turned, _two_passes(image, by_column, by_row))
        image = jnp.where(columns_first, _turn(image), image)
        first, second = (jnp.where(columns_first, *pair) for pair in ((by_row, by_column), (by_column, by_row)))
        image = _two_passes(image, first, second)
        return jnp.where(columns_first, _turn(image), image)

    return jax.vmap(one)(images, boxes)


def _two_passes(image: jax.Array, along_rows: jax.Array, along_columns: jax.Array) -> jax.Array:
    """Resize `[h, w, 3]` along its rows, then along its columns, by weights `[new, old]` of each."""
    for equation, weights in (("yxc,ox->yoc", along_rows), ("yxc,oy->oxc", along_columns)):
        # Levels and weights of less than float32 would move a picture by many levels.
        image = jnp.einsum(equation, image, weights, precision=jax.lax.Precision.HIGHEST)
        image = jnp.clip(jnp.floor(image + 0.5), 0, 255)  # halves go up, as in Pillow
    return image


def _turn(image: jax.Array) -> jax.Array:
    return image.swapaxes(0, 1)


def _weights(start: jax.Array, length: jax.Array, old: int, new: int, interpolation: Interpolation) -> jax.Array:
    """What each of `old` pixels gives to each of the `new` ones that an interval of them becomes: `[new, old]`."""
    scale = length / new
    stretch = jnp.maximum(scale, 1.0)  # the filter widens where the picture shrinks
    centre = start + (jnp.arange(new) + 0.5) * scale
    pixel = jnp.arange(old)
    distance = jnp.abs(pixel + 0.5 - centre[:, None]) / stretch
    if interpolation == "bicubic":  # Keys' kernel, a = -1/2
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = jnp.where(distance < 1, near, far)
    else:
        weights = 1 - distance
    inside = (pixel >= start) & (pixel < start + length)
    weights = jnp.where((distance < _SUPPORT[interpolation]) & inside, weights, 0)
    return weights / weights.sum(1, keepdims=True)
