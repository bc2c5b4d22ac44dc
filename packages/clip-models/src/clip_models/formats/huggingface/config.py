"""Hugging Face's config.json as a ClipConfig, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from clip_models.config import Activation, ClipConfig, PreprocessConfig, TextConfig, TransformerConfig, VisionConfig
from clip_models.formats.huggingface.kinds import KINDS, TEXT_DEFAULTS, VISION_DEFAULTS

# Theirs are ours; where several of theirs are one of ours, the first is what we write.
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "linear": "linear",
}
_LEGACY_EOS = 2  # the wrong id that CLIP's first exports had; transformers keeps it as the sign for "the largest id"


def read_config(
    contents: Mapping[str, Any],
    preprocess: PreprocessConfig,
    *,
    has_vision: bool = True,
    has_text: bool = True,
    is_projected: bool = True,
) -> ClipConfig:
    """Translates config.json.

    Args:
        contents: of config.json, with a ``model_type`` of :data:`KINDS`.
        preprocess: what the model expects of its inputs.
        has_vision: False leaves the image tower out.
        has_text: False leaves the text tower out.
        is_projected: whether a tower of CLIP alone comes with its projection.

    Returns:
        The config.

    Raises:
        ValueError: it describes an architecture that our config cannot express.
    """
    model_type = contents["model_type"]
    kind = KINDS[model_type]
    vision = text = None
    if kind.has_vision and has_vision:
        tower = _part(contents, "vision_config", VISION_DEFAULTS, model_type)
        vision = _VISION_READERS[kind.family](tower)
        if kind.has_text and vision.pool == "gap" and has_text:
            raise ValueError("vision_use_head must be true: without its head this image tower has no embedding.")
    if kind.has_text and has_text:
        tower = _part(contents, "text_config", TEXT_DEFAULTS, model_type)
        text = _read_clip_text(tower) if kind.family == "clip" else _read_siglip_text(tower)
        if kind.family != "clip":
            size = tower["projection_size"] or tower["hidden_size"]
            if vision is not None and size != vision.pooled_dim:
                raise ValueError(
                    f"projection_size of the text tower must be the image tower's width, {vision.pooled_dim}; "
                    f"got {size}."
                )
            projection_dim = None if vision is not None else size
            return ClipConfig(vision=vision, text=text, projection_dim=projection_dim, preprocess=preprocess)
    if kind.family != "clip":
        return ClipConfig(vision=vision, preprocess=preprocess)
    dims = contents if vision is not None and text is not None else tower
    return ClipConfig(
        vision=vision,
        text=text,
        projection_dim=dims.get("projection_dim", 512) if is_projected else None,
        logit_scale_init=contents.get("logit_scale_init_value", 2.6592),
        logit_bias_init=None,
        preprocess=preprocess,
    )


def write_config(model_type: str, config: ClipConfig) -> dict[str, Any]:
    """Describes a model as config.json of a type; what the type cannot express is lost, or said in its terms.

    Args:
        model_type: one of :data:`KINDS`.
        config: of the model, with the towers of that type.

    Returns:
        The contents.
    """
    kind = KINDS[model_type]
    vision = text = None
    if config.vision is not None:
        vision = _write_vision(model_type, config.vision)
    if config.text is not None:
        text = {**_write_transformer(config.text), "vocab_size": config.text.vocab_size}
        text["max_position_embeddings"] = config.text.max_length
        if kind.family == "clip":
            last = config.text.vocab_size - 1  # of a text that is pooled otherwise, which the type cannot express
            eos = config.text.eos_token_id
            text["eos_token_id"] = _LEGACY_EOS if config.text.pool == "argmax" else last if eos is None else eos
        else:
            text["projection_size"] = config.embed_dim if config.vision is None else config.vision.pooled_dim
    projection = {"projection_dim": config.embed_dim} if kind.family == "clip" else {}
    is_projected = kind.projected_class is not None and config.projection_dim is not None
    contents = {"architectures": [kind.projected_class if is_projected else kind.model_class], "model_type": model_type}
    if vision is not None and text is not None:
        contents["text_config"] = {"model_type": f"{kind.family}_text_model", **text, **projection}
        contents["vision_config"] = {"model_type": f"{kind.family}_vision_model", **vision, **projection}
        if kind.family == "clip":
            contents["logit_scale_init_value"] = config.logit_scale_init
        return {**contents, **projection}
    return {**contents, **(vision or text or {}), **projection}


def _part(
    contents: Mapping[str, Any], name: str, defaults: Mapping[str, Mapping[str, Any]], model_type: str
) -> dict[str, Any]:
    """A tower's fields: of its own config, or of the part of a whole model's."""
    kind = KINDS[model_type]
    base = defaults.get(model_type) or defaults[kind.family]
    if not (kind.has_vision and kind.has_text):
        return {**base, **contents}
    # Old exports carry text_config_dict beside text_config; transformers lets it win, and so do we.
    return {**base, **(contents.get(name) or {}), **(contents.get(f"{name}_dict") or {})}


def _read_transformer(contents: Mapping[str, Any], initialization: str) -> dict[str, Any]:
    if contents["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}; got {contents['hidden_act']!r}.")
    if not contents.get("qkv_bias", True):
        raise ValueError("qkv_bias must be true: here all projections of a block have biases, or none has.")
    if contents.get("num_channels", 3) != 3:
        raise ValueError(f"num_channels must be 3, red, green and blue; got {contents['num_channels']}.")
    width = contents["hidden_size"]
    return {
        "width": width,
        "num_layers": contents["num_hidden_layers"],
        "num_heads": contents["num_attention_heads"],
        "mlp_dim": int(width * contents["mlp_ratio"]) if "mlp_ratio" in contents else contents["intermediate_size"],
        "activation": ACTIVATIONS[contents["hidden_act"]],
        "norm_eps": contents["layer_norm_eps"],
        "attention_dropout": contents.get("attention_dropout", contents.get("attention_probs_dropout_prob", 0.0)),
        "dropout": contents.get("hidden_dropout_prob", 0.0),
        "drop_path": contents.get("drop_path_rate", 0.0),
        "initialization": initialization,
    }


def _write_transformer(config: TransformerConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": names.get(config.activations[0], "gelu"),
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": config.attention_dropout,
    }


def _read_clip_text(contents: Mapping[str, Any]) -> TextConfig:
    is_legacy = contents["eos_token_id"] == _LEGACY_EOS
    return TextConfig(
        **_read_transformer(contents, "clip"),
        vocab_size=contents["vocab_size"],
        max_length=contents["max_position_embeddings"],
        causal=True,
        pool="argmax" if is_legacy else "first_eos",
        eos_token_id=None if is_legacy else contents["eos_token_id"],
        projection_bias=False,
    )


def _read_siglip_text(contents: Mapping[str, Any]) -> TextConfig:
    return TextConfig(
        **_read_transformer(contents, "siglip"),
        vocab_size=contents["vocab_size"],
        max_length=contents["max_position_embeddings"],
    )


def _read_clip_vision(contents: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_read_transformer(contents, "clip"),
        image_size=_one_side(contents, "image_size"),
        patch_size=_one_side(contents, "patch_size"),
        pool="cls",
        patch_bias=False,
        embed_norm=True,
    )


def _read_siglip_vision(contents: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_read_transformer(contents, "siglip"),
        image_size=_one_side(contents, "image_size"),
        patch_size=_one_side(contents, "patch_size"),
        pool="map" if contents["vision_use_head"] else "gap",
    )


def _read_siglip2_vision(contents: Mapping[str, Any]) -> VisionConfig:
    patch_size = _one_side(contents, "patch_size")
    return VisionConfig(
        **_read_transformer(contents, "siglip"),
        image_size=math.isqrt(contents["num_patches"]) * patch_size,
        patch_size=patch_size,
        flexible=True,
        pool="map" if contents["vision_use_head"] else "gap",
    )


def _read_vit(contents: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        **_read_transformer(contents, "siglip"),
        image_size=_one_side(contents, "image_size"),
        patch_size=_one_side(contents, "patch_size"),
        pool="cls",
        final_norm="hidden",
    )


def _read_dinov2(contents: Mapping[str, Any]) -> VisionConfig:
    fields = _read_transformer(contents, "siglip")
    if contents["use_swiglu_ffn"]:
        fields["activation"] = ("silu", "linear")
        fields["mlp_dim"] = (int(fields["mlp_dim"] * 2 / 3) + 7) // 8 * 8
    num_registers = contents.get("num_register_tokens", 0)
    return VisionConfig(
        **fields,
        image_size=_one_side(contents, "image_size"),
        patch_size=_one_side(contents, "patch_size"),
        pool="cls",
        final_norm="hidden",
        layer_scale=contents["layerscale_value"],
        num_registers=num_registers,
        keep_registers=num_registers > 0,
    )


_VISION_READERS: dict[str, Callable[[Mapping[str, Any]], VisionConfig]] = {
    "clip": _read_clip_vision,
    "siglip": _read_siglip_vision,
    "siglip2": _read_siglip2_vision,
    "vit": _read_vit,
    "dinov2": _read_dinov2,
}


def _write_vision(model_type: str, config: VisionConfig) -> dict[str, Any]:
    """The fields of an image tower, alone or in a whole model, in the terms of the model's type."""
    fields = {**_write_transformer(config), "patch_size": config.patch_size, "image_size": config.image_shape[0]}
    if model_type.startswith("siglip"):
        fields["vision_use_head"] = config.pool == "map" or KINDS[model_type].has_text  # a whole model always has it
    if model_type.startswith("siglip2"):
        del fields["image_size"]
        fields["num_patches"] = config.num_patches
    if model_type.startswith(("vit", "dinov2")):
        fields["attention_probs_dropout_prob"] = fields.pop("attention_dropout")
        fields["hidden_dropout_prob"] = config.dropout
    if model_type.startswith("dinov2"):
        gated = config.activations == ("silu", "linear")
        ratio = fields.pop("intermediate_size") / config.width * (1.5 if gated else 1)
        fields["mlp_ratio"] = int(ratio) if ratio.is_integer() else ratio
        fields |= {"use_swiglu_ffn": gated, "layerscale_value": config.layer_scale, "use_mask_token": False}
        fields["drop_path_rate"] = config.drop_path
    if model_type == "dinov2_with_registers":
        fields["num_register_tokens"] = config.num_registers
    return fields


def _one_side(contents: Mapping[str, Any], name: str) -> int:
    value = contents[name]
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{name} must be one side of a square; got {value}.")
    return sides.pop()
