"""Hugging Face directories of type ``clip`` and ``siglip``: what their configs say, as a ClipConfig."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig, Interpolation, PreprocessConfig, TextConfig, VisionConfig
from clip_models.formats.huggingface_weights import read_weights
from clip_models.params import Params
from clip_models.presets import OPENAI_MEAN, OPENAI_STD

# config.json leaves out what equals the class's default, so the defaults are part of the format.
_TEXT_DEFAULTS = {
    "clip": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "siglip": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
_VISION_DEFAULTS = {
    "clip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")


def load(directory: Path, contents: Mapping[str, Any], *, repo: str | None) -> tuple[ClipConfig, Params]:
    """Reads a directory; see :func:`clip_models.load_pretrained`.

    Args:
        directory: holds config.json and model.safetensors.
        contents: of config.json.
        repo: the repository that the directory was fetched from, None for a local one.

    Returns:
        (config, params).
    """
    preprocess = _preprocess_config(directory, contents, tokenizer=_tokenizer(directory, repo))
    config = model_config(contents, preprocess)
    return config, read_weights(directory / "model.safetensors", config)


def model_config(contents: Mapping[str, Any], preprocess: PreprocessConfig) -> ClipConfig:
    """Translates config.json.

    Args:
        contents: of config.json, with ``model_type`` clip or siglip.
        preprocess: what the model expects of its inputs.

    Returns:
        The config.

    Raises:
        ValueError: it describes an architecture that our config cannot express.
    """
    kind = contents["model_type"]
    # Old exports carry text_config_dict beside text_config; transformers lets it win, and so do we.
    text = {**_TEXT_DEFAULTS[kind], **(contents.get("text_config") or {}), **(contents.get("text_config_dict") or {})}
    vision = {
        **_VISION_DEFAULTS[kind],
        **(contents.get("vision_config") or {}),
        **(contents.get("vision_config_dict") or {}),
    }
    if kind == "siglip":
        if not vision["vision_use_head"]:
            raise ValueError("vision_use_head must be true: without its head this image tower has no embedding.")
        return ClipConfig(
            vision=VisionConfig(
                **_tower(vision, kind), image_size=vision["image_size"], patch_size=vision["patch_size"]
            ),
            text=TextConfig(
                **_tower(text, kind), vocab_size=text["vocab_size"], max_length=text["max_position_embeddings"]
            ),
            preprocess=preprocess,
        )
    # transformers keeps 2, the wrong id that the first exports had, as the sign for "the largest id".
    legacy = text["eos_token_id"] == 2
    return ClipConfig(
        vision=VisionConfig(
            **_tower(vision, kind),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            pool="cls",
            patch_bias=False,
            embed_norm=True,
        ),
        text=TextConfig(
            **_tower(text, kind),
            vocab_size=text["vocab_size"],
            max_length=text["max_position_embeddings"],
            causal=True,
            pool="argmax" if legacy else "first_eos",
            eos_token_id=None if legacy else text["eos_token_id"],
            projection_bias=False,
        ),
        projection_dim=contents.get("projection_dim", 512),
        logit_scale_init=contents.get("logit_scale_init_value", 2.6592),
        logit_bias_init=None,
        preprocess=preprocess,
    )


def _tower(contents: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if contents["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}; got {contents['hidden_act']!r}.")
    return {
        "width": contents["hidden_size"],
        "num_layers": contents["num_hidden_layers"],
        "num_heads": contents["num_attention_heads"],
        "mlp_dim": contents["intermediate_size"],
        "activation": _ACTIVATIONS[contents["hidden_act"]],
        "norm_eps": contents["layer_norm_eps"],
        "initialization": kind,
    }


def _preprocess_config(directory: Path, contents: Mapping[str, Any], *, tokenizer: str | None) -> PreprocessConfig:
    """Reads the image processor, in the layout of transformers 4 or 5; without one, its class's defaults hold."""
    processor: dict[str, Any] = {}
    if (directory / "preprocessor_config.json").is_file():
        processor = json.loads((directory / "preprocessor_config.json").read_text())
    elif (directory / "processor_config.json").is_file():
        processor = json.loads((directory / "processor_config.json").read_text())["image_processor"]
    is_clip = contents["model_type"] == "clip"
    size = processor.get("size") or {}
    # In the oldest exports a number is the shorter side, as CLIP's processor still reads it.
    squash = not is_clip if not isinstance(size, dict) or not size else "shortest_edge" not in size
    sides = [size] if isinstance(size, int) else list(size.values())
    crop = processor.get("crop_size") if processor.get("do_center_crop", is_clip) else None
    sides += [crop] if isinstance(crop, int) else list((crop or {}).values())
    if len(set(sides)) > 1:
        raise ValueError(f"the image processor must resize and crop to one square; got size={size}, crop_size={crop}.")
    interpolations: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
    if processor.get("resample", 3) not in interpolations:
        raise ValueError(f"resample must be 2 (bilinear) or 3 (bicubic); got {processor['resample']}.")
    tokenizer_config = directory / "tokenizer_config.json"
    tokenizer_class = ""
    if tokenizer_config.is_file():
        tokenizer_class = json.loads(tokenizer_config.read_text()).get("tokenizer_class") or ""
    return PreprocessConfig(
        size=sides[0] if sides else 0,
        resize_mode="squash" if squash else "shortest",
        interpolation=interpolations[processor.get("resample", 3)],
        mean=processor.get("image_mean") or (OPENAI_MEAN if is_clip else (0.5, 0.5, 0.5)),
        std=processor.get("image_std") or (OPENAI_STD if is_clip else (0.5, 0.5, 0.5)),
        tokenizer=tokenizer,
        # SigLIP 2 was trained on lower-cased text; Gemma's tokenizer leaves case alone, CLIP's and SigLIP's do not.
        lower_case=tokenizer_class.startswith("Gemma"),
    )


def _tokenizer(directory: Path, repo: str | None) -> str | None:
    if repo is not None:
        return repo
    return str(directory) if any((directory / name).is_file() for name in _TOKENIZER_FILES) else None
