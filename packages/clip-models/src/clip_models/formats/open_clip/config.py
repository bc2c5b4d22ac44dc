"""open_clip_config.json as a ClipConfig, and back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from clip_models.config import (
    ClipConfig,
    PreprocessConfig,
    TextConfig,
    TextPool,
    TransformerConfig,
    VisionConfig,
    VisionPool,
)
from clip_models.formats.open_clip.timm import timm_fields, timm_name
from clip_models.formats.tokenizer import is_repository
from clip_models.presets import OPENAI_MEAN, OPENAI_STD

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
"""The tokenizer of OpenAI's CLIP, which open_clip has built in, in the form that transformers opens."""

_IMAGE_POOLS: dict[str, VisionPool] = {"tok": "cls", "avg": "gap"}
_TEXT_POOLS: dict[str, TextPool] = {"argmax": "argmax", "last": "last", "eos": "first_eos"}
# The fields that are read, and those that say nothing of what a model computes. Any other must be off.
_TOWER = {"width", "layers", "mlp_ratio", "ls_init_value", "pool_type", "act_kwargs", "norm_kwargs", "output_tokens"}
_FIELDS = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"}
    | {"custom_text", "nonscalar_logit_scale", "output_dict", "cast_dtype"},
    "vision_cfg": _TOWER
    | {"head_width", "patch_size", "image_size", "patch_dropout", "no_ln_pre", "final_ln_after_pool", "pos_embed_type"}
    | {"timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"}
    | {"timm_drop", "timm_drop_path", "attn_pooler_queries", "attn_pooler_heads"},
    "text_cfg": _TOWER
    | {"heads", "context_length", "vocab_size", "eos_id", "no_causal_mask", "proj_bias", "proj_type", "pad_id"}
    | {"final_ln_after_pool", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"}
    | {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type"},
}


def read_config(contents: Mapping[str, Any], *, tokenizer: str | None = None) -> ClipConfig:
    """Translates open_clip_config.json.

    Args:
        contents: of the file.
        tokenizer: where the tokenizer is. None: where the file says.

    Returns:
        The config.

    Raises:
        ValueError: it describes an architecture that our config cannot express.
    """
    model = contents["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    for name, part in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        if found := sorted(
            f for f in part if f not in _FIELDS[name] and part[f] not in (None, False, 0, "", "default")
        ):
            raise ValueError(f"{name} has options that are not known here: {', '.join(found)}.")
    quick_gelu = model.get("quick_gelu", False)
    image_tower = _read_vision(vision, quick_gelu)
    is_projected = not vision.get("timm_model_name") or vision.get("timm_proj", "linear") == "linear"
    if not is_projected and model["embed_dim"] != image_tower.width:
        raise ValueError(
            f"embed_dim must be the image tower's width, {image_tower.width}, where timm_proj is none; "
            f"got {model['embed_dim']}."
        )
    return ClipConfig(
        vision=image_tower,
        text=_read_text(text, quick_gelu),
        projection_dim=model["embed_dim"] if is_projected else None,
        logit_scale_init=model.get("init_logit_scale", math.log(1 / 0.07)),
        logit_bias_init=model.get("init_logit_bias"),
        preprocess=_read_preprocess(contents.get("preprocess_cfg") or {}, text, tokenizer),
    )


def write_config(config: ClipConfig, *, has_tokenizer: bool = False) -> dict[str, Any]:
    """Describes a model as open_clip_config.json; what open_clip cannot express is lost.

    Args:
        config: of a model with both towers.
        has_tokenizer: whether the tokenizer is beside the file.

    Returns:
        The contents.

    Raises:
        ValueError: there is only one tower.
    """
    vision, text, preprocess = config.vision, config.text, config.preprocess
    if vision is None or text is None:
        raise ValueError("open_clip's models have both towers")
    quick_gelu = vision.activation == "quick_gelu"
    name = timm_name(vision)
    size = list(vision.image_size) if isinstance(vision.image_size, tuple) else vision.image_size
    if name is not None:
        vision_cfg = {"image_size": size, "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "map"}
        vision_cfg["timm_proj"] = "none" if config.projection_dim is None else "linear"
        if vision.projection_bias:
            vision_cfg["timm_proj_bias"] = True
    else:
        pools = {ours: theirs for theirs, ours in _IMAGE_POOLS.items()}
        vision_cfg = {
            **_write_transformer(vision, quick_gelu),
            "head_width": vision.head_dim,
            "image_size": size,
            "patch_size": vision.patch_size,
            "pool_type": pools.get(vision.pool, "tok"),
            "final_ln_after_pool": vision.final_norm == "pooled",
            "no_ln_pre": not vision.embed_norm,
            "patch_dropout": vision.patch_dropout,
        }
    pools = {ours: theirs for theirs, ours in _TEXT_POOLS.items()}
    text_cfg = {
        **_write_transformer(text, quick_gelu),
        "heads": text.num_heads,
        "vocab_size": text.vocab_size,
        "context_length": text.max_length,
        "pool_type": pools.get(text.pool, "argmax"),
        "no_causal_mask": not text.causal,
        "proj_bias": text.projection_bias,
    }
    if text.pool == "first_eos":
        text_cfg["eos_id"] = text.eos_token_id
    known = preprocess.tokenizer
    if has_tokenizer or known not in (None, CLIP_TOKENIZER):
        # Of a local directory the files beside are taken, whatever it says; of one on the Hub, what it says.
        text_cfg["hf_tokenizer_name"] = known if known is not None and is_repository(known) else "."
        if preprocess.lower_case or preprocess.canonicalize:
            text_cfg["tokenizer_kwargs"] = {"clean": "canonicalize" if preprocess.canonicalize else "lower"}
    model: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": quick_gelu,
        "init_logit_scale": config.logit_scale_init,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }
    if config.logit_bias_init is not None:
        model["init_logit_bias"] = config.logit_bias_init
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "size": size,
            "mode": "RGB",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize_mode,
            "fill_color": 0,
        },
    }


def _read_transformer(contents: Mapping[str, Any], quick_gelu: bool) -> dict[str, Any]:
    is_tanh = (contents.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "width": contents["width"],
        "num_layers": contents["layers"],
        "mlp_dim": int(contents["width"] * contents.get("mlp_ratio", 4.0)),
        "activation": "quick_gelu" if quick_gelu else "gelu_tanh" if is_tanh else "gelu",
        "norm_eps": (contents.get("norm_kwargs") or {}).get("eps", 1e-5),
        "layer_scale": contents.get("ls_init_value"),
        "initialization": "clip",
    }


def _write_transformer(config: TransformerConfig, quick_gelu: bool) -> dict[str, Any]:
    ratio = config.mlp_dim / config.width
    if int(config.width * ratio) != config.mlp_dim:  # it was rounded down
        ratio = (config.mlp_dim + 0.5) / config.width
    contents: dict[str, Any] = {"width": config.width, "layers": config.num_layers, "mlp_ratio": ratio}
    if config.layer_scale is not None:
        contents["ls_init_value"] = config.layer_scale
    if config.norm_eps != 1e-5:
        contents["norm_kwargs"] = {"eps": config.norm_eps}
    if config.activation == "gelu_tanh" and not quick_gelu:
        contents["act_kwargs"] = {"approximate": "tanh"}
    return contents


def _read_vision(contents: Mapping[str, Any], quick_gelu: bool) -> VisionConfig:
    size = contents.get("image_size", 224)
    size = tuple(size) if isinstance(size, list) else size
    if contents.get("timm_model_name"):
        if (pool := contents.get("timm_pool", "avg")) != "map":
            raise ValueError(f"timm_pool must be 'map', as SigLIP's is; got {pool!r}.")
        if (projection := contents.get("timm_proj", "linear")) not in ("none", "", "linear"):
            raise ValueError(f"timm_proj must be 'none' or 'linear'; got {projection!r}.")
        fields = {**timm_fields(contents["timm_model_name"]), "image_size": size}
        return VisionConfig(**fields, projection_bias=contents.get("timm_proj_bias", False))
    if not isinstance(contents.get("layers", 12), int):
        raise ValueError(f"layers must be one number: ResNets are not known here; got {contents['layers']}.")
    pool = contents.get("pool_type", "tok")
    if pool not in _IMAGE_POOLS:
        raise ValueError(f"pool_type of vision_cfg must be one of {', '.join(_IMAGE_POOLS)}; got {pool!r}.")
    tower = {"width": 768, "layers": 12, **contents}
    return VisionConfig(
        **_read_transformer(tower, quick_gelu),
        num_heads=tower["width"] // contents.get("head_width", 64),
        image_size=size,
        patch_size=contents.get("patch_size", 16),
        pool=_IMAGE_POOLS[pool],
        class_token=True,
        final_norm="pooled" if contents.get("final_ln_after_pool") else "hidden",
        patch_bias=False,
        embed_norm=not contents.get("no_ln_pre", False),
        patch_dropout=contents.get("patch_dropout", 0.0),
    )


def _read_text(contents: Mapping[str, Any], quick_gelu: bool) -> TextConfig:
    pool = contents.get("pool_type", "argmax")
    if pool not in _TEXT_POOLS:
        raise ValueError(f"pool_type of text_cfg must be one of {', '.join(_TEXT_POOLS)}; got {pool!r}.")
    if (projection := contents.get("proj_type", "linear")) != "linear":
        raise ValueError(f"proj_type of text_cfg must be 'linear'; got {projection!r}.")
    tower = {"width": 512, "layers": 12, **contents}
    return TextConfig(
        **_read_transformer(tower, quick_gelu),
        num_heads=contents.get("heads", 8),
        vocab_size=contents.get("vocab_size", 49408),
        max_length=contents.get("context_length", 77),
        causal=not contents.get("no_causal_mask", False),
        pool=_TEXT_POOLS[pool],
        eos_token_id=contents.get("eos_id", 2) if pool == "eos" else None,
        projection_bias=contents.get("proj_bias", False),
    )


def _read_preprocess(contents: Mapping[str, Any], text: Mapping[str, Any], tokenizer: str | None) -> PreprocessConfig:
    mode, interpolation = contents.get("resize_mode", "shortest"), contents.get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"interpolation must be bicubic or bilinear; got {interpolation!r}.")
    if mode == "longest" and contents.get("fill_color", 0):
        raise ValueError(f"fill_color must be 0, black; got {contents['fill_color']}.")
    options = text.get("tokenizer_kwargs") or {}
    cleaning = options.get("clean")
    ignored = [f"{name} = {value!r}" for name, value in options.items() if name != "clean" and value]
    ignored += [f"tokenizer_mode = {text['tokenizer_mode']!r}"] if text.get("tokenizer_mode") else []
    if ignored:
        warnings.warn(
            f"the tokenizer has options of open_clip's that are not known here, {', '.join(ignored)}: prepare texts "
            "with open_clip's tokenizer.",
            stacklevel=2,
        )
    named = text.get("hf_tokenizer_name") or CLIP_TOKENIZER
    return PreprocessConfig(
        resize_mode=mode,
        interpolation=interpolation,
        mean=tuple(contents.get("mean", OPENAI_MEAN)),
        std=tuple(contents.get("std", OPENAI_STD)),
        tokenizer=tokenizer or (None if named == "." else named),  # what should be beside, and is not
        pad_id=None if text.get("hf_tokenizer_name") else 0,  # its built-in tokenizer of CLIP's
        lower_case=cleaning in ("lower", "canonicalize"),
        canonicalize=cleaning == "canonicalize",
    )
