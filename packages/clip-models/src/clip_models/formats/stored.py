"""What every format makes of a model on disk: its config, its files, and where our arrays are in them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
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
        contents = read_json(index)
        with translating(index):
            shards = sorted(set(contents["weight_map"].values()))
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a place to write a file to, which is there when it is whole: it takes its name when the block ends."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there when it is whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, contents: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Writes a JSON file that is there when it is whole."""
    write_text(path, json.dumps(contents, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; it is not ({error}).") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} must hold a JSON object, {{…}}; it holds a {type(contents).__name__}.")
    return contents


@contextlib.contextmanager
def translating(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file's contents are translated into one error that names the file.

    Args:
        path: of the file.

    Raises:
        ValueError: a field is missing, is of another type than its format has, or is refused.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}, which its format has.") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a field of another type than its format has: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
