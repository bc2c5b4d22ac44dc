"""A config's towers and decoder: made with random weights, known by their structure, or joined to arrays from outside.

This is the only place where flax modules and plain dicts meet. It runs while jax traces, never while a step executes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from clip_models.config import ClipConfig
from clip_models.decoder import Decoder
from clip_models.params import check_shapes, shapes
from clip_models.text import TextTower
from clip_models.vision import VisionTower


def make_vision_tower(config: ClipConfig, key: jax.Array) -> VisionTower:
    """Returns the image tower with random weights."""
    if config.vision is None:
        raise ValueError("images need an image tower; config.vision is None.")
    return VisionTower(config.vision, config.compute, projection_dim=config.projection_dim, rngs=nnx.Rngs(key))


def make_text_tower(config: ClipConfig, key: jax.Array) -> TextTower:
    """Returns the text tower with random weights."""
    if config.text is None:
        raise ValueError("texts need a text tower; config.text is None.")
    return TextTower(config.text, config.compute, projection_dim=config.text_projection_dim, rngs=nnx.Rngs(key))


def make_decoder(config: ClipConfig, key: jax.Array) -> Decoder:
    """Returns the decoder with random weights."""
    if config.decoder is None or config.vision is None:
        raise ValueError("captions need a decoder; config.decoder is None.")
    return Decoder(config.decoder, config.compute, image_width=config.vision.width, rngs=nnx.Rngs(key))


@functools.lru_cache(maxsize=64)
def vision_structure(config: ClipConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the image tower's graphdef, and its parameters as shapes."""
    return _structure(make_vision_tower, config)


@functools.lru_cache(maxsize=64)
def text_structure(config: ClipConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the text tower's graphdef, and its parameters as shapes."""
    return _structure(make_text_tower, config)


@functools.lru_cache(maxsize=64)
def decoder_structure(config: ClipConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the decoder's graphdef, and its parameters as shapes."""
    return _structure(make_decoder, config)


def bind_vision_tower(config: ClipConfig, params: Mapping[str, Any]) -> VisionTower:
    """Returns the image tower with the arrays of ``params["vision"]``, or raises ValueError if they do not fit."""
    return _bind(vision_structure(config), params, "vision")


def bind_text_tower(config: ClipConfig, params: Mapping[str, Any]) -> TextTower:
    """Returns the text tower with the arrays of ``params["text"]``, or raises ValueError if they do not fit."""
    return _bind(text_structure(config), params, "text")


def bind_decoder(config: ClipConfig, params: Mapping[str, Any]) -> Decoder:
    """Returns the decoder with the arrays of ``params["decoder"]``, or raises ValueError if they do not fit."""
    return _bind(decoder_structure(config), params, "decoder")


def _structure(make: Callable[[ClipConfig, jax.Array], nnx.Module], config: ClipConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: make(config, jax.random.key(0))), nnx.Param)


def _bind(structure: tuple[nnx.GraphDef, nnx.State], params: Mapping[str, Any], name: str) -> Any:
    if name not in params:
        part = name if name == "decoder" else f"{name} tower"
        raise ValueError(f"params must hold the {part} under {name!r}; got the keys {sorted(params)}.")
    graphdef, state = structure
    # nnx.merge matches leaves by order, not by name: without this a misnamed array would be taken for another
    check_shapes(shapes(nnx.to_pure_dict(state)), shapes(params[name]), source=f"params[{name!r}]")
    return nnx.merge(graphdef, params[name])
