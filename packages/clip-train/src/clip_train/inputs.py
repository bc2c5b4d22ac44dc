"""What a model expects of its inputs, handed to the data pipeline."""

from __future__ import annotations

from typing import Any

from clip_data import DataConfig, SourceConfig
from clip_models import ClipConfig


def data_config(model: ClipConfig, sources: tuple[SourceConfig, ...], **options: Any) -> DataConfig:
    """How samples are prepared for a model.

    Args:
        model: its `preprocess` says what it expects.
        sources: where the samples are.
        **options: other fields of `DataConfig`, or values in place of the model's.
    """
    expects = model.preprocess
    prepared = {
        "image_size": expects.size,
        "resize_mode": expects.resize_mode,
        "interpolation": expects.interpolation,
        "tokenizer": expects.tokenizer,
        "text_length": expects.text_length,
        "padding": expects.padding,
        "lower_case": expects.lower_case,
    }
    return DataConfig(sources=sources, **(prepared | options))
