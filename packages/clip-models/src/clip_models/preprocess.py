"""Pictures to the arrays that a model expects, with numpy and Pillow alone; for training there is clip_data."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from PIL import Image

from clip_models.config import ClipConfig, PreprocessConfig

Picture = Image.Image | np.ndarray | str | os.PathLike[str]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def preprocess_images(config: ClipConfig, pictures: Iterable[Picture]) -> np.ndarray:
    """Resizes and normalises pictures as ``config.preprocess`` says.

    Args:
        config: of the model.
        pictures: Pillow images, uint8 arrays [h, w, 3], or paths of image files; of any sizes.

    Returns:
        float32 [b, size, size, 3].

    Raises:
        ValueError: there is no picture, or an array is not uint8 [h, w, 3].
    """
    preprocess = config.preprocess
    pixels = [np.asarray(_resize(_open(picture), preprocess)) for picture in pictures]
    if not pixels:
        raise ValueError("pictures must hold at least one; got none.")
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    return (np.stack(pixels).astype(np.float32) / 255 - mean) / std


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"an array must be uint8 [h, w, 3]; got {picture.dtype} {list(picture.shape)}.")
        return Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    with Image.open(picture) as image:
        return image.convert("RGB")


def _resize(image: Image.Image, preprocess: PreprocessConfig) -> Image.Image:
    """Makes an image square, with the rounding of transformers' image processors."""
    size, resampling = preprocess.size, _RESAMPLING[preprocess.interpolation]
    width, height = image.size
    match preprocess.resize_mode:
        case "squash":
            return image.resize((size, size), resampling)
        case "shortest":
            short = min(width, height)
            width, height = int(size * width / short), int(size * height / short)
            left, top = (width - size) // 2, (height - size) // 2
            return image.resize((width, height), resampling).crop((left, top, left + size, top + size))
        case "longest":
            long = max(width, height)
            width, height = max(1, round(size * width / long)), max(1, round(size * height / long))
            square = Image.new("RGB", (size, size))
            square.paste(image.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
            return square
