"""What a model expects of its inputs: told to the data pipeline, and made of what that yields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_data import Batch, DataConfig, SourceConfig
from clip_models import ClipConfig, DecoderConfig, TextConfig, VisionConfig
from clip_train.augment import normalize


def both_towers(model: ClipConfig) -> tuple[VisionConfig, TextConfig]:
    """The towers of a model that learns from pairs.

    Raises:
        ValueError: it lacks one.
    """
    if model.vision is None or model.text is None:
        missing = "text" if model.text is None else "image"
        raise ValueError(f"pairs of pictures and texts need both towers; the model has no {missing} tower")
    return model.vision, model.text


def image_tower(model: ClipConfig) -> VisionConfig:
    """The image tower of a model that learns from pictures.

    Raises:
        ValueError: it has none.
    """
    if model.vision is None:
        raise ValueError("training needs an image tower; the model has none")
    return model.vision


def text_config(model: ClipConfig) -> TextConfig | DecoderConfig:
    """What reads or writes a model's texts: the text tower, or the decoder where there is none.

    Raises:
        ValueError: it has neither.
    """
    language = model.text or model.decoder
    if language is None:
        raise ValueError("training needs a text tower or a decoder; the model has neither")
    return language


# Stands where sources are named later, or never: a `DataConfig` has at least one.
_LATER = (SourceConfig(format="folder", shards="."),)


def data_config(model: ClipConfig, sources: tuple[SourceConfig, ...] = _LATER, **options: Any) -> DataConfig:
    """How samples are prepared for a model.

    Args:
        model: its `preprocess` says what it expects.
        sources: where the samples are; left out where only the preparation matters, such as for its tokenizer.
        **options: other fields of `DataConfig`, or values in place of the model's.
    """
    expects = model.preprocess
    prepared = {
        "image_size": expects.size,
        "resize_mode": expects.resize_mode,
        "interpolation": expects.interpolation,
        "tokenizer": expects.tokenizer,
        "text_length": max(expects.text_length, 1),  # an image tower alone has none
        "padding": expects.padding,
        "pad_id": expects.pad_id,
        "lower_case": expects.lower_case,
        "canonicalize": expects.canonicalize,
    }
    if model.vision is not None and expects.resize_mode == "naflex":
        prepared |= {"patch_size": model.vision.patch_size, "max_patches": expects.max_patches}
    return DataConfig(sources=sources, **(prepared | options))


STORED = "embeddings/"
"""Before the names of the arrays that are vectors of the records."""


def stored_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The vectors that the records of a batch hold, float32 `[b, e]`, under their names after `STORED`."""
    return {STORED + name: array for name, array in batch.embeddings.items()}


def image_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """What a batch holds of its pictures, under its names: `image`, and of patches what `image_inputs` reads too.

    Raises:
        ValueError: it holds none.
    """
    if batch.image is None:
        raise ValueError("the batch holds texts only; read pictures by DataConfig(image_size=…)")
    arrays = {"image": batch.image}
    if batch.pixel_attention_mask is not None and batch.spatial_shapes is not None:
        arrays |= {"pixel_attention_mask": batch.pixel_attention_mask, "spatial_shapes": batch.spatial_shapes}
    return arrays


def image_inputs(model: ClipConfig, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Pictures as `encode_image` takes them, by its names.

    Args:
        model: its `preprocess` says how they are normalised.
        arrays: `image`, uint8 or float `[b, h, w, 3]` in [0, 255]; or patches `[b, p, patch_size² · 3]`, with
            `pixel_attention_mask` int32 `[b, p]` and `spatial_shapes` int32 `[b, 2]`.

    Returns:
        `pixel_values`, float32 of the shape of `image`, zero where there is no patch; the other two as they are.
    """
    image, mean, std = arrays["image"], model.preprocess.mean, model.preprocess.std
    if "spatial_shapes" not in arrays:
        return {"pixel_values": normalize(image, mean=mean, std=std)}
    mask = arrays["pixel_attention_mask"]
    patches = normalize(image.reshape(*image.shape[:2], -1, 3), mean=mean, std=std).reshape(image.shape)
    return {
        "pixel_values": jnp.where(mask[..., None] > 0, patches, 0),
        "pixel_attention_mask": mask,
        "spatial_shapes": arrays["spatial_shapes"],
    }


def pictures_of(batch: Batch) -> list[np.ndarray]:
    """The real rows' pictures as the model sees them, uint8 `[h, w, 3]` each; patches are put together."""
    image = image_arrays(batch)["image"]
    if batch.spatial_shapes is None:
        return list(image[batch.mask])
    pictures = []
    for patches, (rows, columns) in zip(image[batch.mask], batch.spatial_shapes[batch.mask], strict=True):
        side = math.isqrt(patches.shape[1] // 3)
        picture = patches[: rows * columns].reshape(rows, columns, side, side, 3).swapaxes(1, 2)
        pictures.append(picture.reshape(rows * side, columns * side, 3))
    return pictures
