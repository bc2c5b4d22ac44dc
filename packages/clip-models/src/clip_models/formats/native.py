"""Our own format: ``config.json`` holds the ClipConfig, ``model.safetensors`` the arrays under their flat names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig, ComputeConfig, DecoderConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.formats.params_io import expected_shapes, write_params
from clip_models.formats.source import Source, Sources
from clip_models.formats.stored import Stored, open_directory, translating, write_json
from clip_models.formats.tokenizer import is_repository, read_tokenizer

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
    contents = dataclasses.asdict(config)
    tokenizer = config.preprocess.tokenizer
    if tokenizer is not None and not is_repository(tokenizer) and read_tokenizer(directory).name is not None:
        contents["preprocess"]["tokenizer"] = None  # it is beside the config, wherever that is taken
    write_json(directory / "config.json", {"model_type": MODEL_TYPE, "config": contents})


def read_directory_config(directory: Path, contents: Mapping[str, Any], *, repo: str | None = None) -> ClipConfig:
    """Reads a directory's config. A tokenizer's files that are in the directory come before the one that it names.

    Args:
        directory: holds config.json.
        contents: of config.json.
        repo: the repository that the directory was fetched from, None for a local one.

    Returns:
        The config.
    """
    with translating(directory / "config.json"):
        config = config_from_dict(contents["config"])
    beside = read_tokenizer(directory, repo).name
    return config if beside is None else replace(config, preprocess=replace(config.preprocess, tokenizer=beside))


def open_native(
    directory: Path, contents: Mapping[str, Any], *, repo: str | None = None, config: ClipConfig | None
) -> Stored:
    """Opens a directory; see :func:`clip_models.load_pretrained`."""
    config = config or read_directory_config(directory, contents, repo=repo)
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
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in contents:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1) or fields
            raise ValueError(f"{where} has no field {key!r}; did you mean {', '.join(near)}?")
    required = [name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in contents]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    return cls(**contents)


def _sources(config: ClipConfig) -> Sources:
    return {name: Source(name) for name in expected_shapes(config)}
