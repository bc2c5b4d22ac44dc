"""What happens to pictures on the device: they arrive as uint8, a quarter of the bytes, are cropped and normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clip_train.resample import Interpolation, resize


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures vary.

    Attributes:
        source_size: pixels on each side in which pictures come to the device, to be brought to the model's size there;
            by default they come in the model's size.
        crop_scale: a random crop covers this share of the area, least and most, and is resized to the full size;
            `(1, 1)` crops nothing. open_clip trains with `(0.9, 1)`.
        crop_ratio: width over height of the crop, least and most.
        interpolation: of that resize, as Pillow's.
        flip: whether half of the pictures are mirrored; wrong for text and digits.
    """

    source_size: int | None = None
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse ranges that are empty or outside their bounds."""
        if self.source_size is not None and self.source_size < 1:
            raise ValueError(f"source_size is at least 1 pixel; got {self.source_size}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is (least, most) in (0, 1]; got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is (least, most) above 0; got {self.crop_ratio}")

    @property
    def changes(self) -> bool:
        """Whether pictures become others than they come."""
        return self.source_size is not None or self.crops or self.flip

    @property
    def crops(self) -> bool:
        """Whether any picture is cropped at random."""
        return self.crop_scale != (1.0, 1.0)


def augment(
    images: jax.Array, key: jax.Array | None, config: AugmentConfig, *, size: tuple[int, int] | None = None
) -> jax.Array:
    """Crop each picture, bring it to a size and mirror it.

    Args:
        images: uint8 or float `[b, h, w, 3]`, in [0, 255].
        key: the draw. None: nothing is random; as much of the centre as fits is taken.
        config: how much.
        size: height and width of the result, pixels; by default the pictures keep theirs.

    Returns:
        float32 `[b, *size, 3]`, in [0, 255].

    References:
        Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, for the crops.
    """
    num, height, width, _ = images.shape
    shape = (height, width) if size is None else size
    images = images.astype(jnp.float32)
    if key is None:
        if (height, width) != shape:
            # the largest box of the result's shape
            zoom = min(height / shape[0], width / shape[1])
            sides = round(shape[0] * zoom), round(shape[1] * zoom)
            box = jnp.array([(height - sides[0]) // 2, (width - sides[1]) // 2, *sides])
            images = resize(images, jnp.tile(box, (num, 1)), shape, interpolation=config.interpolation)
        return images
    crop_key, flip_key = jax.random.split(key)
    if config.crops or (height, width) != shape:
        boxes = jax.vmap(lambda k: _random_box(k, height, width, config))(jax.random.split(crop_key, num))
        images = resize(images, boxes, shape, interpolation=config.interpolation)
    if config.flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(num, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def _random_box(key: jax.Array, height: int, width: int, config: AugmentConfig) -> jax.Array:
    """Draw top, left, height and width, int32 `[4]`; the whole picture where nothing is cropped."""
    if not config.crops:
        return jnp.array([0, 0, height, width])
    scale_key, ratio_key, y_key, x_key = jax.random.split(key, 4)
    area = jax.random.uniform(scale_key, minval=config.crop_scale[0], maxval=config.crop_scale[1])
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=low, maxval=high) / 2)
    picture = jnp.array([height, width])
    # A crop that is wider than the picture is cut to it.
    sides = jnp.sqrt(area * height * width) * jnp.stack([1 / ratio, ratio])
    sides = jnp.clip(jnp.round(sides), 1, picture).astype(jnp.int32)
    at = jnp.stack([jax.random.uniform(y_key), jax.random.uniform(x_key)])
    return jnp.concatenate([jnp.floor(at * (picture - sides + 1)).astype(jnp.int32), sides])


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
