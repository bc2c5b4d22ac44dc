"""CLIP and SigLIP in JAX: two towers as pure functions on plain dicts, named architectures, weights in and out."""

from clip_models.axes import logical_axes
from clip_models.clip import (
    ClipOutput,
    Features,
    apply,
    encode_image,
    encode_text,
    image_features,
    init,
    num_params,
    text_features,
)
from clip_models.config import ClipConfig, ComputeConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.presets import preset, presets

__all__ = [
    "ClipConfig",
    "ClipOutput",
    "ComputeConfig",
    "Features",
    "PreprocessConfig",
    "TextConfig",
    "VisionConfig",
    "apply",
    "encode_image",
    "encode_text",
    "image_features",
    "init",
    "logical_axes",
    "num_params",
    "preset",
    "presets",
    "text_features",
]
