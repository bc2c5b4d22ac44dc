"""What a model expects of its inputs, handed to the data pipeline."""

from __future__ import annotations

from typing import Any

from clip_data import DataConfig, SourceConfig
from clip_models import ClipConfig, TextConfig, VisionConfig


def both_towers(model: ClipConfig) -> tuple[VisionConfig, TextConfig]:
    """The towers of a model that learns from pairs.

    Raises:
        ValueError: it lacks one.
    """
    if model.vision is None or model.text is None:
        missing = "text" if model.text is None else "image"
        raise ValueError(f"pairs of pictures and texts need both towers; the model has no {missing} tower")
    return model.vision, model.text


def data_config(model: ClipConfig, sources: tuple[SourceConfig, ...], **options: Any) -> DataConfig:
    """How samples are prepared for a model.

    Args:
        model: its `preprocess` says what it expects.
        sources: where the samples are.
        **options: other fields of `DataConfig`, or values in place of the model's.

    Raises:
        ValueError: the model's images are not square.
    """
    expects = model.preprocess
    if isinstance(expects.size, tuple):
        height, width = expects.size
        raise ValueError(f"the data pipeline makes square images; the model's image_size is {height} × {width}")
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
    return DataConfig(sources=sources, **(prepared | options))
