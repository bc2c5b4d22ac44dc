"""CLIP and SigLIP in JAX: two towers as pure functions on plain dicts, named architectures, weights in and out."""

from clip_models import surgery
from clip_models.activations import constrain_activations
from clip_models.axes import logical_axes
from clip_models.caption import caption_logits
from clip_models.clip import (
    ClipOutput,
    Features,
    apply,
    encode_image,
    encode_text,
    image_features,
    init,
    num_params,
    project_image,
    text_features,
)
from clip_models.config import ClipConfig, ComputeConfig, DecoderConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.generate import generate
from clip_models.preprocess import PatchSequences, preprocess_images
from clip_models.presets import preset, presets
from clip_models.pretrained import load_config, load_pretrained, save_pretrained

__all__ = [
    "ClipConfig",
    "ClipOutput",
    "ComputeConfig",
    "DecoderConfig",
    "Features",
    "PatchSequences",
    "PreprocessConfig",
    "TextConfig",
    "VisionConfig",
    "apply",
    "caption_logits",
    "constrain_activations",
    "encode_image",
    "encode_text",
    "generate",
    "image_features",
    "init",
    "load_config",
    "load_pretrained",
    "logical_axes",
    "num_params",
    "preprocess_images",
    "preset",
    "presets",
    "project_image",
    "save_pretrained",
    "surgery",
    "text_features",
]
