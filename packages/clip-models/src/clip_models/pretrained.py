"""Weights in and out: one door, with the formats behind it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig
from clip_models.formats import huggingface, native
from clip_models.params import Params

_FILES = [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
]


def save_pretrained(directory: str | os.PathLike[str], config: ClipConfig, params: Mapping[str, Any]) -> None:
    """Writes a model in our own format: ``config.json`` and ``model.safetensors``.

    Args:
        directory: made if it is not there; the two files are replaced if they are.
        config: of the model.
        params: its arrays, all of them.

    Raises:
        ValueError: the arrays are not those of the config.
    """
    native.save(Path(directory), config, params)


def load_pretrained(path_or_repo: str | os.PathLike[str]) -> tuple[ClipConfig, Params]:
    """Reads a model: what :func:`save_pretrained` wrote, or a Hugging Face directory of type ``clip`` or ``siglip``.

    Args:
        path_or_repo: a directory or, where there is none of that name, a repository on the Hugging Face Hub, which is
            downloaded once and kept in the Hub's cache.

    Returns:
        (config, float32 params).

    Raises:
        FileNotFoundError: no directory, no repository, or one without ``config.json`` and ``model.safetensors``.
        ValueError: it holds a model of another type, or its tensors are not those of its config.
    """
    directory = Path(path_or_repo)
    repo = None
    if not directory.is_dir():
        repo = str(path_or_repo)
        directory = _download(repo)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"a model needs {name}; {path_or_repo} has none.")
    contents = json.loads((directory / "config.json").read_text())
    match contents.get("model_type"):
        case native.MODEL_TYPE:
            return native.load(directory, contents)
        case "clip" | "siglip":
            return huggingface.load(directory, contents, repo=repo)
    raise ValueError(
        f"model_type must be {native.MODEL_TYPE}, clip or siglip; "
        f"{path_or_repo}/config.json says {contents.get('model_type')!r}."
    )


def _download(repo: str) -> Path:
    import huggingface_hub  # costs a second, and local models have no use for it

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise FileNotFoundError(f"{repo} is neither a directory nor a repository's name (owner/name).")
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo} is not a local directory, and it could not be fetched as a Hugging Face repository "
            f"({type(error).__name__}): check the name and the network, or give a directory."
        ) from error
