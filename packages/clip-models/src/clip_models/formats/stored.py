"""What every format makes of a model on disk: its config, its files, and where our arrays are in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip_models.config import ClipConfig
from clip_models.formats.source import Sources
from clip_models.formats.tensor_file import TensorFiles, open_safetensors


class Stored(NamedTuple):
    """A model on disk, of which no weights have been read yet.

    Args:
        config: of the model.
        files: the tensors that it is made of.
        sources: of every array, by our flat name.
        where: what errors call it.
    """

    config: ClipConfig
    files: TensorFiles
    sources: Sources
    where: str


def find_safetensors(directory: Path, name: str = "model") -> list[Path]:
    """Returns a model's safetensors files: one, or those that an index lists.

    Args:
        directory: of the model.
        name: of the files, before the first dot.

    Raises:
        FileNotFoundError: there is none, or not all of them are there.
    """
    whole, index = directory / f"{name}.safetensors", directory / f"{name}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [shard for shard in shards if not (directory / shard).is_file()]:
            raise FileNotFoundError(f"{index} lists {', '.join(missing)}, which {directory} has not.")
        return [directory / shard for shard in shards]
    pickled = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in directory.glob(f"*.{suffix}"))
    if pickled:
        raise FileNotFoundError(
            f"weights must be {whole.name}; {directory} has {', '.join(pickled)}: pickled files, which run whatever "
            "code they hold when they are opened. Open them in PyTorch, where you trust them, and save them as "
            "safetensors (transformers: model.save_pretrained)."
        )
    raise FileNotFoundError(f"a model needs {whole.name}; {directory} has none.")


def open_directory(directory: Path, name: str = "model") -> TensorFiles:
    """Opens a model's safetensors files; see :func:`find_safetensors`."""
    return open_safetensors(find_safetensors(directory, name))


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes a JSON file that is there when it is whole."""
    write_text(path, json.dumps(contents, indent=2) + "\n")
