"""Pictures to the arrays that a model expects, with numpy and Pillow alone; for training there is clip_data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from PIL import Image, ImageOps

from clip_models.config import ClipConfig, PreprocessConfig

Picture = Image.Image | np.ndarray | str | os.PathLike[str]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class PatchSequences(TypedDict):
    """Pictures as sequences of patches, under the names that :func:`clip_models.apply` takes them by.

    Args:
        pixel_values: float32 [b, p, patch · patch · 3], row by row, zero after a picture's last patch.
        pixel_attention_mask: int32 [b, p], 1 at patches and 0 after the last.
        spatial_shapes: int32 [b, 2], rows and columns of patches.
    """

    pixel_values: np.ndarray
    pixel_attention_mask: np.ndarray
    spatial_shapes: np.ndarray


def preprocess_images(config: ClipConfig, pictures: Iterable[Picture]) -> np.ndarray | PatchSequences:
    """Resizes and normalises pictures as ``config.preprocess`` says, and as transformers' processors do.

    Like these, it turns a file upright by its EXIF orientation and ignores its transparency; a Pillow image it takes as
    it lies, and puts what is transparent in it on white. Grey becomes grey RGB.

    Args:
        config: of the model.
        pictures: Pillow images, uint8 arrays [h, w, c] of 1 (grey), 3 (RGB) or 4 (RGBA) channels, or paths of image
            files; of any sizes.

    Returns:
        float32 [b, h, w, 3] of ``config.preprocess.size``, ``pixel_values`` of :func:`clip_models.apply`. Where
        ``resize_mode`` is ``naflex``, a dict of three arrays: ``apply(config, params, **arrays)``.

    Raises:
        ValueError: there is no picture, an array is no picture, or the model has no image tower.
    """
    if config.vision is None:
        raise ValueError("a model without a vision tower expects no pictures; config.vision is None.")
    images = [_open(picture) for picture in pictures]
    if not images:
        raise ValueError("pictures must hold at least one; got none.")
    preprocess, patch_size = config.preprocess, config.vision.patch_size
    if preprocess.resize_mode == "naflex":
        return _patch_sequences(images, preprocess, patch_size)
    return np.stack([_normalize(_resize(image, preprocess), preprocess) for image in images])


def naflex_grid(height: int, width: int, *, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Finds the grid of patches that a picture is resized to: at most ``max_patches``, close to its aspect.

    >>> naflex_grid(480, 640, patch_size=16, max_patches=256)
    (14, 18)

    It is the bisection of transformers' Siglip2ImageProcessor, step by step: where it stops decides the grid.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        patch_size: side of a patch, pixels.
        max_patches: length of the sequence.

    Returns:
        (rows, columns), each at least 1.
    """
    tolerance = 1e-5
    low, high = tolerance / 10, 100.0

    def grid(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / patch_size)), max(1, math.ceil(width * scale / patch_size))

    while high - low >= tolerance:
        scale = (low + high) / 2
        if math.prod(grid(scale)) <= max_patches:
            low = scale
        else:
            high = scale
    return grid(low)


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
            raise ValueError(
                "an array must be uint8 [h, w, channels] of 1, 3 or 4 channels; "
                f"got {picture.dtype} {list(picture.shape)}."
            )
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    if isinstance(picture, Image.Image):
        return _on_white(picture)
    with Image.open(picture) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _resize(image: Image.Image, preprocess: PreprocessConfig) -> Image.Image:
    """Brings an image to the size, with the rounding of transformers (and of open_clip where it alone has the mode)."""
    resampling = _RESAMPLING[preprocess.interpolation]
    size = preprocess.size
    height, width = size if isinstance(size, tuple) else (size, size)
    if preprocess.resize_mode == "squash":
        return image.resize((width, height), resampling)
    ratios = image.height / height, image.width / width
    if preprocess.resize_mode == "longest":
        ratio = max(ratios)
        inner = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(inner, resampling), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return canvas
    if height == width:
        short = min(image.size)
        outer = int(width * image.width / short), int(height * image.height / short)
    else:
        outer = round(image.width / min(ratios)), round(image.height / min(ratios))
    left, top = (outer[0] - width) // 2, (outer[1] - height) // 2
    return image.resize(outer, resampling).crop((left, top, left + width, top + height))


def _normalize(image: Image.Image, preprocess: PreprocessConfig) -> np.ndarray:
    """Returns float32 [h, w, 3]."""
    pixels = np.asarray(image).astype(np.float32) / 255
    return (pixels - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)


def _patch_sequences(images: list[Image.Image], preprocess: PreprocessConfig, patch_size: int) -> PatchSequences:
    num_patches = preprocess.max_patches
    arrays = PatchSequences(
        pixel_values=np.zeros((len(images), num_patches, patch_size**2 * 3), np.float32),
        pixel_attention_mask=np.zeros((len(images), num_patches), np.int32),
        spatial_shapes=np.zeros((len(images), 2), np.int32),
    )
    for i, image in enumerate(images):
        rows, columns = naflex_grid(image.height, image.width, patch_size=patch_size, max_patches=num_patches)
        size = columns * patch_size, rows * patch_size
        pixels = _normalize(image.resize(size, _RESAMPLING[preprocess.interpolation]), preprocess)
        patches = pixels.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
        arrays["pixel_values"][i, : rows * columns] = patches.reshape(rows * columns, -1)
        arrays["pixel_attention_mask"][i, : rows * columns] = 1
        arrays["spatial_shapes"][i] = rows, columns
    return arrays
