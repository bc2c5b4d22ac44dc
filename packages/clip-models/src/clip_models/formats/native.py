"""Our own format: ``config.json`` holds the ClipConfig, ``model.safetensors`` the arrays under their flat names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig, ComputeConfig, DecoderConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.formats.params_io import expected_shapes, write_params
from clip_models.formats.source import Source, Sources
from clip_models.formats.stored import Stored, open_directory, write_json

MODEL_TYPE = "clip-jax"
_PARTS = {
    "vision": VisionConfig,
    "text": TextConfig,
    "decoder": DecoderConfig,
    "preprocess": PreprocessConfig,
    "compute": ComputeConfig,
}


def write_native(directory: Path, config: ClipConfig, params: Mapping[str, Any], *, dtype: str | None) -> None:
    """Writes arrays and, last, config; see :func:`clip_models.save_pretrained`."""
    weights = directory / "model.safetensors"
    write_params(weights, _sources(config), config, params, dtype=dtype, metadata={"format": "np"})
    write_json(directory / "config.json", {"model_type": MODEL_TYPE, "config": dataclasses.asdict(config)})


def open_native(directory: Path, contents: Mapping[str, Any], *, config: ClipConfig | None) -> Stored:
    """Opens a directory; see :func:`clip_models.load_pretrained`."""
    config = config or config_from_dict(contents["config"])
    return Stored(config, open_directory(directory), _sources(config), str(directory))


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


def _sources(config: ClipConfig) -> Sources:
    return {name: Source(name) for name in expected_shapes(config)}
