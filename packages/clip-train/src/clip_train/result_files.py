"""Results of evaluations as files that `clip_benchmark build` gathers: one object each, named as it names its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_train.config_file import ConfigError
from clip_train.output import write_json


def check_place(to: Path | None, num_results: int) -> None:
    """Make sure, before anything is measured, that results can be written.

    Args:
        to: a folder, or a file that ends in `.json`; `None` for none.
        num_results: how many there will be.

    Raises:
        ConfigError: they cannot.
    """
    if to is None:
        return
    if to.suffix == ".json" and num_results > 1:
        raise ConfigError(f"--to: {to} holds one result, and {num_results} are asked for; give a folder")
    folder = to.parent if to.suffix == ".json" else to
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to: {folder} is a file; give a folder, or a file that ends in .json")


def write_results(to: Path, results: Sequence[dict[str, Any]]) -> list[Path]:
    """Write each result by itself.

    Args:
        to: as in `check_place`.
        results: in CLIP_benchmark's form.

    Returns:
        The files.
    """
    paths = [to] if to.suffix == ".json" else [to / file_name(result) for result in results]
    for path, result in zip(paths, results, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return paths


def file_name(result: dict[str, Any]) -> str:
    """What CLIP_benchmark calls the file of a result, without what no file can be called.

    Example:
        >>> facts = {"dataset": "wds/cifar10", "pretrained": "runs/a", "model": "siglip-b-16-224", "language": "en"}
        >>> file_name(facts | {"task": "zeroshot_classification"})
        'wds_cifar10_a_siglip-b-16-224_en_zeroshot_classification.json'
    """
    place = result["pretrained"].rstrip("/").rpartition("/")[2]
    facts = (result["dataset"], place, result["model"], result["language"], result["task"])
    return "_".join(re.sub(r"[^\w.+-]+", "_", fact).strip("_") for fact in facts) + ".json"
