"""Our own format: ``config.json`` holds the ClipConfig, ``model.safetensors`` the arrays under their flat names."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from clip_models.clip import init
from clip_models.config import ClipConfig, ComputeConfig, DecoderConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.params import Params, check_shapes, flatten, shapes, unflatten

MODEL_TYPE = "clip-jax"
_PARTS = {
    "vision": VisionConfig,
    "text": TextConfig,
    "decoder": DecoderConfig,
    "preprocess": PreprocessConfig,
    "compute": ComputeConfig,
}


def save(directory: Path, config: ClipConfig, params: Mapping[str, Any]) -> None:
    """Writes config and arrays; see :func:`clip_models.save_pretrained`."""
    flat = flatten(params)
    check_shapes(_expected(config), shapes(params), source="params")
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(jax.device_get(array), order="C") for name, array in flat.items()}
    save_file(arrays, directory / "model.safetensors", metadata={"format": "np"})
    contents = {"model_type": MODEL_TYPE, "config": dataclasses.asdict(config)}
    (directory / "config.json").write_text(json.dumps(contents, indent=2) + "\n")


def load(directory: Path, contents: Mapping[str, Any]) -> tuple[ClipConfig, Params]:
    """Reads config and arrays; see :func:`clip_models.load_pretrained`."""
    config = config_from_dict(contents["config"])
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        flat = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, it is no dict
    check_shapes(_expected(config), shapes(flat), source=str(directory / "model.safetensors"))
    return config, unflatten(flat)


def config_from_dict(contents: Mapping[str, Any]) -> ClipConfig:
    """Builds a config from the nested dicts of its JSON.

    Args:
        contents: as ``dataclasses.asdict`` gives them.

    Returns:
        The config.

    Raises:
        ValueError: a key is unknown, or a value is refused by the config.
    """
    parts = {name: _build(cls, contents[name], name) for name, cls in _PARTS.items() if contents.get(name) is not None}
    return _build(ClipConfig, {**contents, **parts}, "config")


def _build(cls: type, contents: Mapping[str, Any], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    for key in contents:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1) or names
            raise ValueError(f"{where} has no field {key!r}; did you mean {', '.join(near)}?")
    return cls(**contents)


def _expected(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    return shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))
