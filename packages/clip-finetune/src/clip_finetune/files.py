"""Files of this machine: where a task writes, which there are below a folder, and a digest of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_data.buckets import REMOTE
from clip_train.config_file import ConfigError
from clip_train.output import Output


def local_output(directory: str) -> Output:
    """The files of a task.

    Raises:
        ConfigError: the directory is in a bucket.
    """
    if directory.startswith(REMOTE):
        raise ConfigError(f"output_dir: a directory of this machine, which can be copied later; got {directory}")
    return Output(Path(directory))


def contents_digest(paths: Sequence[str]) -> str:
    """A digest of local files, and of all files below folders, their names included."""
    digest = hashlib.blake2b(digest_size=16)
    for path in map(Path, paths):
        for file in sorted(files_below(path)) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, hidden ones left out."""
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
