"""What happens to pictures on the device: they arrive as uint8, a quarter of the bytes, are cropped and normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures vary.

    Attributes:
        crop_scale: a random crop covers this share of the area, least and most, and is resized to the full size;
            `(1, 1)` crops nothing. open_clip trains with `(0.9, 1)`.
        crop_ratio: width over height of the crop, least and most.
        flip: whether half of the pictures are mirrored; wrong for text and digits.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse ranges that are empty or outside their bounds."""
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is (least, most) in (0, 1]; got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is (least, most) above 0; got {self.crop_ratio}")

    @property
    def crops(self) -> bool:
        """Whether any picture is cropped."""
        return self.crop_scale != (1.0, 1.0)


def augment(images: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    """Crop and mirror each picture at random.

    Args:
        images: uint8 or float `[b, h, w, 3]`, in [0, 255].
        key: the draw.
        config: how much.

    Returns:
        float32 `[b, h, w, 3]`, in [0, 255].

    References:
        Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, for the crops.
    """
    crop_key, flip_key = jax.random.split(key)
    images = images.astype(jnp.float32)
    if config.crops:
        keys = jax.random.split(crop_key, images.shape[0])
        images = jax.vmap(lambda image, k: _random_crop(image, k, config))(images, keys)
    if config.flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def _random_crop(image: jax.Array, key: jax.Array, config: AugmentConfig) -> jax.Array:
    height, width, channels = image.shape
    scale_key, ratio_key, y_key, x_key = jax.random.split(key, 4)
    area = jax.random.uniform(scale_key, minval=config.crop_scale[0], maxval=config.crop_scale[1])
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=low, maxval=high) / 2)
    side = jnp.sqrt(area)
    # Shares of the picture's height and width; a crop that is wider than the picture is cut to it.
    share = jnp.minimum(jnp.stack([side / ratio, side * ratio]), 1.0)
    at = jnp.stack([jax.random.uniform(y_key), jax.random.uniform(x_key)]) * (1.0 - share)
    zoom = 1.0 / share
    size = jnp.array([height, width], jnp.float32)
    resized = jax.image.scale_and_translate(
        image, (height, width, channels), (0, 1), zoom, -at * size * zoom, "linear", antialias=True
    )
    return jnp.clip(resized, 0.0, 255.0)


def normalize(images: jax.Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Scale to [0, 1], subtract the mean, divide by the standard deviation, per channel.

    Args:
        images: uint8 or float `[b, h, w, 3]`, in [0, 255].
        mean: of the three channels, on the [0, 1] scale.
        std: likewise.

    Returns:
        float32 `[b, h, w, 3]`.

    Example:
        >>> import jax.numpy as jnp
        >>> white = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
        >>> normalize(white, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).tolist()
        [[[[1.0, 1.0, 1.0]]]]
    """
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale - offset
