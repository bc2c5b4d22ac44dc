"""Named architectures, as published."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

from clip_models.config import ClipConfig, PreprocessConfig, TextConfig, VisionConfig

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _openai(
    *,
    tokenizer: str,
    patch_size: int,
    width: int,
    num_layers: int,
    text_width: int,
    image_size: int = 224,
) -> ClipConfig:
    """OpenAI's CLIP: its dims vary, the rest is the same in all of them."""
    return ClipConfig(
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            num_layers=num_layers,
            pool="cls",
            patch_bias=False,
            embed_norm=True,
            activation="quick_gelu",
            norm_eps=1e-5,
            initialization="clip",
        ),
        text=TextConfig(
            vocab_size=49408,
            max_length=77,
            width=text_width,
            num_layers=12,
            causal=True,
            pool="first_eos",
            eos_token_id=49407,
            projection_bias=False,
            activation="quick_gelu",
            norm_eps=1e-5,
            initialization="clip",
        ),
        projection_dim=text_width,
        logit_scale_init=math.log(1 / 0.07),
        logit_bias_init=None,
        preprocess=PreprocessConfig(
            resize_mode="shortest", mean=OPENAI_MEAN, std=OPENAI_STD, tokenizer=f"openai/{tokenizer}"
        ),
    )


def _siglip(
    *,
    tokenizer: str,
    image_size: int,
    patch_size: int = 16,
    width: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    max_length: int = 64,
) -> ClipConfig:
    """SigLIP: both towers have the same dims."""
    return ClipConfig(
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
        ),
        text=TextConfig(
            vocab_size=32000,
            max_length=max_length,
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
        ),
        preprocess=PreprocessConfig(tokenizer=f"google/{tokenizer}"),
    )


def _siglip_base(image_size: int) -> ClipConfig:
    tokenizer = f"siglip-base-patch16-{image_size}"
    return _siglip(tokenizer=tokenizer, image_size=image_size, width=768, num_layers=12, num_heads=12, mlp_dim=3072)


def _siglip_large(image_size: int) -> ClipConfig:
    tokenizer = f"siglip-large-patch16-{image_size}"
    return _siglip(tokenizer=tokenizer, image_size=image_size, width=1024, num_layers=24, num_heads=16, mlp_dim=4096)


def _siglip_so400m(image_size: int, max_length: int) -> ClipConfig:
    return _siglip(
        tokenizer=f"siglip-so400m-patch14-{image_size}",
        image_size=image_size,
        patch_size=14,
        width=1152,
        num_layers=27,
        num_heads=16,
        mlp_dim=4304,
        max_length=max_length,
    )


def _vit_l_14(image_size: int, tokenizer: str) -> ClipConfig:
    return _openai(tokenizer=tokenizer, patch_size=14, width=1024, num_layers=24, text_width=768, image_size=image_size)


_PRESETS: dict[str, Callable[[], ClipConfig]] = {
    "vit-b-32": lambda: _openai(
        tokenizer="clip-vit-base-patch32", patch_size=32, width=768, num_layers=12, text_width=512
    ),
    "vit-b-16": lambda: _openai(
        tokenizer="clip-vit-base-patch16", patch_size=16, width=768, num_layers=12, text_width=512
    ),
    "vit-l-14": lambda: _vit_l_14(224, "clip-vit-large-patch14"),
    "vit-l-14-336": lambda: _vit_l_14(336, "clip-vit-large-patch14-336"),
    "siglip-b-16-224": lambda: _siglip_base(224),
    "siglip-b-16-256": lambda: _siglip_base(256),
    "siglip-b-16-384": lambda: _siglip_base(384),
    "siglip-b-16-512": lambda: _siglip_base(512),
    "siglip-l-16-256": lambda: _siglip_large(256),
    "siglip-l-16-384": lambda: _siglip_large(384),
    "siglip-so400m-14-224": lambda: _siglip_so400m(224, max_length=16),
    "siglip-so400m-14-384": lambda: _siglip_so400m(384, max_length=64),
}


def presets() -> tuple[str, ...]:
    """Returns the names that :func:`preset` knows."""
    return tuple(_PRESETS)


def preset(name: str) -> ClipConfig:
    """Returns a published architecture, with the inputs that its published weights expect.

    >>> preset("vit-b-32").vision.num_tokens
    50

    Args:
        name: one of :func:`presets`. ``vit-…`` are OpenAI's CLIP, quick GELU included; ``siglip-…`` Google's SigLIP.

    Returns:
        The config. It says nothing of weights: :func:`clip_models.init` draws random ones.

    Raises:
        ValueError: no preset has this name.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=3, cutoff=0.4) or list(_PRESETS)
        raise ValueError(f"no preset is named {name!r}; did you mean {', '.join(near)}? presets() lists them all.")
    return _PRESETS[name]()
