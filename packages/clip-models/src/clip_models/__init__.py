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
from clip_models.preprocess import preprocess_images
from clip_models.presets import preset, presets
from clip_models.pretrained import load_config, load_pretrained, save_pretrained

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
    "load_config",
    "load_pretrained",
    "logical_axes",
    "num_params",
    "preprocess_images",
    "preset",
    "presets",
    "save_pretrained",
    "text_features",
]
