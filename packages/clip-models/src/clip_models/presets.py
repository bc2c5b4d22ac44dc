"""Named architectures, as published."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import TypedDict

from clip_models.config import (
    Activation,
    ClipConfig,
    DecoderConfig,
    PreprocessConfig,
    TextConfig,
    VisionConfig,
)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class _Size(TypedDict):
    """The dims of a tower."""

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int


def _size(width: int, num_layers: int, num_heads: int, mlp_dim: int) -> _Size:
    return {"width": width, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}


_BASE = _size(768, 12, 12, 3072)
_LARGE = _size(1024, 24, 16, 4096)
_SO400M = _size(1152, 27, 16, 4304)
_GIANT_OPT = _size(1536, 40, 16, 6144)
_CLIP_TEXT_BASE = _size(512, 12, 8, 2048)
_CLIP_TEXT_LARGE = _size(768, 12, 12, 3072)

_GEGLU: tuple[Activation, ...] = ("gelu_tanh", "linear")
_REGLU: tuple[Activation, ...] = ("relu", "linear")


def _clip(
    vision: _Size,
    text: _Size,
    *,
    tokenizer: str,
    patch_size: int,
    image_size: int = 224,
    activation: Activation = "quick_gelu",
) -> ClipConfig:
    """OpenAI's CLIP, and what open_clip trained after it: class token, causal text, projections without bias."""
    return ClipConfig(
        vision=VisionConfig(
            **vision,
            image_size=image_size,
            patch_size=patch_size,
            pool="cls",
            patch_bias=False,
            embed_norm=True,
            activation=activation,
            norm_eps=1e-5,
            initialization="clip",
        ),
        text=TextConfig(
            **text,
            vocab_size=49408,
            max_length=77,
            causal=True,
            pool="first_eos",
            eos_token_id=49407,
            projection_bias=False,
            activation=activation,
            norm_eps=1e-5,
            initialization="clip",
        ),
        projection_dim=text["width"],
        logit_scale_init=math.log(1 / 0.07),
        logit_bias_init=None,
        preprocess=PreprocessConfig(resize_mode="shortest", mean=OPENAI_MEAN, std=OPENAI_STD, tokenizer=tokenizer),
    )


def _openai(vision: _Size, text: _Size, name: str, *, patch_size: int, image_size: int = 224) -> ClipConfig:
    return _clip(vision, text, tokenizer=f"openai/clip-vit-{name}", patch_size=patch_size, image_size=image_size)


def _laion(vision: _Size, text: _Size, name: str) -> ClipConfig:
    return _clip(vision, text, tokenizer=f"laion/CLIP-ViT-{name}", patch_size=14, activation="gelu")


def _siglip(
    size: _Size,
    *,
    tokenizer: str,
    image_size: int,
    patch_size: int = 16,
    max_length: int = 64,
    vocab_size: int = 32000,
) -> ClipConfig:
    """SigLIP: both towers have the same dims."""
    return ClipConfig(
        vision=VisionConfig(**size, image_size=image_size, patch_size=patch_size),
        text=TextConfig(**size, vocab_size=vocab_size, max_length=max_length),
        preprocess=PreprocessConfig(tokenizer=f"google/siglip-{tokenizer}"),
    )


def _siglip2(
    size: _Size, *, name: str, image_size: int, patch_size: int = 16, text: _Size | None = None, naflex: bool = False
) -> ClipConfig:
    """SigLIP 2: SigLIP with Gemma's vocabulary and lower-cased text; NaFlex sees pictures in their own aspect."""
    return ClipConfig(
        vision=VisionConfig(**size, image_size=image_size, patch_size=patch_size, flexible=naflex),
        text=TextConfig(**(text or size), vocab_size=256000, max_length=64),
        preprocess=PreprocessConfig(
            tokenizer=f"google/siglip2-{name}-patch{patch_size}-{'naflex' if naflex else image_size}",
            lower_case=True,
            resize_mode="naflex" if naflex else "squash",
            interpolation="bilinear",
        ),
    )


def _clip_jax(
    text: _Size,
    vision: _Size,
    *,
    projection_dim: int,
    activations: tuple[Activation | tuple[Activation, ...], Activation | tuple[Activation, ...]],
    logit_scale_init: float = math.log(10),
    logit_bias_init: float = -10.0,
) -> ClipConfig:
    """The first configurations of clip-jax: NormFormer of RMS norms without scale, nothing has a bias."""
    return ClipConfig(
        vision=VisionConfig(
            **vision,
            activation=activations[1],
            image_size=256,
            patch_size=16,
            positions="sincos2d",
            pool="gap",
            block="normformer",
            norm="rmsnorm",
            norm_scale=False,
            norm_bias=False,
            use_bias=False,
            patch_bias=False,
        ),
        text=TextConfig(
            **text,
            activation=activations[0],
            vocab_size=50048,
            max_length=80,
            positions="rotary",
            pool="first_eos",
            eos_token_id=49407,
            block="normformer",
            norm="rmsnorm",
            norm_scale=False,
            norm_bias=False,
            use_bias=False,
            projection_bias=False,
        ),
        projection_dim=projection_dim,
        logit_scale_init=logit_scale_init,
        logit_bias_init=logit_bias_init,
    )


def _cappa() -> ClipConfig:
    """The captioner of clip-jax: layer norms without scale or bias, and an image tower that keeps its registers."""
    return ClipConfig(
        vision=VisionConfig(
            **_size(1024, 24, 16, 3072),
            activation=_GEGLU,
            image_size=256,
            patch_size=16,
            positions="factorized",
            pool="gap",
            num_registers=8,
            keep_registers=True,
            qk_norm=True,
            norm_scale=False,
            norm_bias=False,
            use_bias=False,
            patch_bias=False,
        ),
        decoder=DecoderConfig(
            **_size(1024, 12, 16, 3072),
            activation=_GEGLU,
            vocab_size=65536,
            max_length=64,
            positions="rotary",
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            mask_token_id=4,
            parallel_fraction=0.75,
            qk_norm=True,
            norm_scale=False,
            norm_bias=False,
            use_bias=False,
        ),
    )


_PRESETS: dict[str, Callable[[], ClipConfig]] = {
    "vit-b-32": lambda: _openai(_BASE, _CLIP_TEXT_BASE, "base-patch32", patch_size=32),
    "vit-b-16": lambda: _openai(_BASE, _CLIP_TEXT_BASE, "base-patch16", patch_size=16),
    "vit-l-14": lambda: _openai(_LARGE, _CLIP_TEXT_LARGE, "large-patch14", patch_size=14),
    "vit-l-14-336": lambda: _openai(_LARGE, _CLIP_TEXT_LARGE, "large-patch14-336", patch_size=14, image_size=336),
    "vit-h-14": lambda: _laion(_size(1280, 32, 16, 5120), _LARGE, "H-14-laion2B-s32B-b79K"),
    "vit-g-14": lambda: _laion(_size(1408, 40, 16, 6144), _LARGE, "g-14-laion2B-s12B-b42K"),
    "vit-bigg-14": lambda: _laion(_size(1664, 48, 16, 8192), _size(1280, 32, 20, 5120), "bigG-14-laion2B-39B-b160k"),
    **{
        f"siglip-b-16-{side}": lambda side=side: _siglip(_BASE, tokenizer=f"base-patch16-{side}", image_size=side)
        for side in (224, 256, 384, 512)
    },
    "siglip-b-16-256-i18n": lambda: _siglip(
        _BASE, tokenizer="base-patch16-256-multilingual", image_size=256, vocab_size=250000
    ),
    **{
        f"siglip-l-16-{side}": lambda side=side: _siglip(_LARGE, tokenizer=f"large-patch16-{side}", image_size=side)
        for side in (256, 384)
    },
    "siglip-so400m-14-224": lambda: _siglip(
        _SO400M, tokenizer="so400m-patch14-224", image_size=224, patch_size=14, max_length=16
    ),
    "siglip-so400m-14-384": lambda: _siglip(_SO400M, tokenizer="so400m-patch14-384", image_size=384, patch_size=14),
    "siglip-so400m-16-256-i18n": lambda: _siglip(
        _SO400M, tokenizer="so400m-patch16-256-i18n", image_size=256, vocab_size=250000
    ),
    "siglip2-b-32-256": lambda: _siglip2(_BASE, name="base", image_size=256, patch_size=32),
    **{
        f"siglip2-b-16-{side}": lambda side=side: _siglip2(_BASE, name="base", image_size=side)
        for side in (224, 256, 384, 512)
    },
    **{
        f"siglip2-l-16-{side}": lambda side=side: _siglip2(_LARGE, name="large", image_size=side)
        for side in (256, 384, 512)
    },
    **{
        f"siglip2-so400m-14-{side}": lambda side=side: _siglip2(_SO400M, name="so400m", image_size=side, patch_size=14)
        for side in (224, 384)
    },
    **{
        f"siglip2-so400m-16-{side}": lambda side=side: _siglip2(_SO400M, name="so400m", image_size=side)
        for side in (256, 384, 512)
    },
    **{
        f"siglip2-g-opt-16-{side}": lambda side=side: _siglip2(
            _GIANT_OPT, name="giant-opt", image_size=side, text=_SO400M
        )
        for side in (256, 384)
    },
    "siglip2-b-16-naflex": lambda: _siglip2(_BASE, name="base", image_size=256, naflex=True),
    "siglip2-so400m-16-naflex": lambda: _siglip2(_SO400M, name="so400m", image_size=256, naflex=True),
    "clip-jax-tiny": lambda: _clip_jax(
        _size(256, 2, 8, 512), _size(256, 2, 4, 512), projection_dim=128, activations=(_REGLU, _REGLU)
    ),
    "clip-jax-small": lambda: _clip_jax(
        _size(512, 5, 8, 1024), _size(512, 5, 8, 1024), projection_dim=512, activations=("gelu_tanh", "gelu_tanh")
    ),
    "clip-jax-base": lambda: _clip_jax(
        _size(512, 12, 8, 2048), _size(768, 12, 12, 3072), projection_dim=512, activations=(_GEGLU, _REGLU)
    ),
    "clip-jax-large": lambda: _clip_jax(
        _size(768, 12, 12, 2048), _size(1024, 24, 16, 2688), projection_dim=768, activations=(_GEGLU, _REGLU)
    ),
    "clip-jax-huge": lambda: _clip_jax(
        _size(1024, 20, 16, 3072),
        _size(1024, 30, 16, 3072),
        projection_dim=1024,
        activations=(_GEGLU, _REGLU),
        logit_scale_init=2.6592,
        logit_bias_init=0.0,
    ),
    "cappa-large-16": _cappa,
}


def presets() -> tuple[str, ...]:
    """Returns the names that :func:`preset` knows."""
    return tuple(_PRESETS)


def preset(name: str) -> ClipConfig:
    """Returns a published architecture, with the inputs that its published weights expect.

    >>> preset("vit-b-32").vision.num_tokens
    50

    Args:
        name: one of :func:`presets`. ``vit-b-…`` and ``vit-l-…`` are OpenAI's CLIP, with its quick GELU; ``vit-h-14``,
            ``vit-g-14`` and ``vit-bigg-14`` LAION's, with the exact one; ``siglip-…`` and ``siglip2-…`` are Google's.
            ``clip-jax-…`` and ``cappa-…`` are the architectures of clip-jax; where its files give 10 as the first value
            of the scale's logarithm, the scale of 10 is meant, and is what they have here.

    Returns:
        The config. It says nothing of weights: :func:`clip_models.init` draws random ones.

    Raises:
        ValueError: no preset has this name.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
        Cherti et al., Reproducible Scaling Laws for Contrastive Language-Image Learning, 2022.
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023.
        Tschannen et al., SigLIP 2, 2025.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=3, cutoff=0.4) or list(_PRESETS)
        raise ValueError(f"no preset is named {name!r}; did you mean {', '.join(near)}? presets() lists them all.")
    return _PRESETS[name]()
