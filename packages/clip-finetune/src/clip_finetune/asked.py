"""What a command line asks for: a config file, or a config made of a few flags."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from clip_finetune.config import FinetuneConfig, SentencesConfig
from clip_train.config_file import (
    ConfigError,
    config_to_json,
    located,
    parse_config,
    read_config,
    read_json,
    set_field,
)
from clip_train.data_argument import source_of


def asked_of(
    file: str | Path | None,
    overrides: list[str],
    *,
    model: str | None = None,
    data: str | None = None,
    mode: str | None = None,
    output_dir: str | None = None,
    default_output: str = "runs/classify",
) -> FinetuneConfig:
    """The config of a classification.

    Args:
        file: a config file; `None`: the flags say all.
        overrides: of its fields.
        model: as in the config.
        data: labelled samples to learn from, class folders or shards; a folder that holds `train` and `test` is both.
        mode: as in the config.
        output_dir: likewise.
        default_output: where there is neither that nor a file.

    Raises:
        ConfigError: something is missing, or cannot be.
    """
    tree = _flagged(model, mode, output_dir)
    if data is not None:
        with located("--data"):
            train = source_of(data, split="train")
            tree["train"] = config_to_json(train)
            test = source_of(data, split="test")
        if (Path(data) / "train").is_dir() and (Path(data) / "test").is_dir():
            tree["test"] = config_to_json(test)
    if file is not None:
        return read_config(FinetuneConfig, file, [*_as_overrides(tree), *overrides])
    if model is None or data is None:
        raise ConfigError("give a config, or --model and --data")
    tree.setdefault("output_dir", os.path.abspath(default_output))
    for override in overrides:
        set_field(tree, override)
    return parse_config(FinetuneConfig, tree)


def sentences_asked_of(
    file: str | Path,
    overrides: list[str],
    *,
    model: str | None = None,
    data: str | None = None,
    mode: str | None = None,
    output_dir: str | None = None,
) -> SentencesConfig | None:
    """The config of a sentence embedding; `None` where the file's `task` is none.

    Args:
        file: a config file.
        overrides: of its fields.
        model: as in the config.
        data: is refused: pairs need the names of their columns.
        mode: as in the config.
        output_dir: likewise.

    Raises:
        ConfigError: something is missing, or cannot be.
    """
    if read_json(file).get("task") != "embedding":
        return None
    if data is not None:
        raise ConfigError(f"--data: pairs of sentences are named in the config; set train.shards, got {data}")
    flags = _as_overrides(_flagged(model, mode, output_dir))
    return read_config(SentencesConfig, file, [*flags, *overrides])


def _flagged(model: str | None, mode: str | None, output_dir: str | None) -> dict[str, Any]:
    """The fields that flags give."""
    tree: dict[str, Any] = {}
    if model is not None:
        tree["model"] = os.path.abspath(model) if os.path.exists(model) else model
    if mode is not None:
        tree["mode"] = mode
    if output_dir is not None:
        tree["output_dir"] = os.path.abspath(output_dir)
    return tree


def _as_overrides(tree: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in tree.items()]
