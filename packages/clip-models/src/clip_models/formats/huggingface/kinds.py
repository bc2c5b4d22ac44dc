"""The model types of Hugging Face's config.json that are ours, and the defaults that its configs leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A model type.

    Args:
        family: whose names and layouts its tensors have.
        has_vision: whether there is an image tower.
        has_text: whether there is a text tower.
        model_class: the PyTorch class.
        projected_class: the one that a tower alone has with a projection.
        processor_class: what makes its inputs.
    """

    family: str
    has_vision: bool
    has_text: bool
    model_class: str
    projected_class: str | None = None
    processor_class: str | None = None


KINDS = {
    "clip": Kind("clip", True, True, "CLIPModel", processor_class="CLIPProcessor"),
    "clip_vision_model": Kind("clip", True, False, "CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "clip_text_model": Kind("clip", False, True, "CLIPTextModel", "CLIPTextModelWithProjection"),
    "siglip": Kind("siglip", True, True, "SiglipModel", processor_class="SiglipProcessor"),
    "siglip_vision_model": Kind("siglip", True, False, "SiglipVisionModel"),
    "siglip_text_model": Kind("siglip", False, True, "SiglipTextModel"),
    "siglip2": Kind("siglip2", True, True, "Siglip2Model", processor_class="Siglip2Processor"),
    "siglip2_vision_model": Kind("siglip2", True, False, "Siglip2VisionModel"),
    "siglip2_text_model": Kind("siglip2", False, True, "Siglip2TextModel"),
    "vit": Kind("vit", True, False, "ViTModel"),
    "dinov2": Kind("dinov2", True, False, "Dinov2Model"),
    "dinov2_with_registers": Kind("dinov2", True, False, "Dinov2WithRegistersModel"),
}

_CLIP = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP = {
    **_BASE,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
_DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_DINOV2 = {
    **_BASE,
    **_DROPOUTS,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
}

# config.json leaves out what equals the class's default, so the defaults are part of the format.
TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        **_CLIP,
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "projection_dim": 512,
    },
    "siglip": {**_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None},
    "siglip2": {**_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None},
}
VISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        **_CLIP,
        **_BASE,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 32,
        "projection_dim": 512,
    },
    "siglip": {**_SIGLIP, "image_size": 224, "patch_size": 16, "vision_use_head": True},
    "siglip2": {**_SIGLIP, "num_patches": 256, "patch_size": 16, "vision_use_head": True},
    "vit": {
        **_BASE,
        **_DROPOUTS,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "qkv_bias": True,
    },
    "dinov2": _DINOV2,
    "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
}
