"""Files of this machine: where a task writes, which there are below a folder, and a digest of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from clip_data.buckets import REMOTE
from clip_train.config_file import ConfigError
from clip_train.output import Output


def claimed(
    directory: str,
    config: dict[str, Any],
    console: Console,
    *,
    done: Callable[[Output, dict[str, Any]], bool] = lambda output, _: output.results.exists(),
) -> tuple[Output, bool]:
    """The files of a task, and whether it is finished, which is then said.

    Args:
        directory: its `output_dir`.
        config: the resolved config.
        console: to say it on.
        done: whether a task of this config that has been here is finished.

    Raises:
        ConfigError: the directory is in a bucket, or holds something else.
    """
    if directory.startswith(REMOTE):
        raise ConfigError(f"output_dir: a directory of this machine, which can be copied later; got {directory}")
    output = Output(Path(directory))
    finished = output.claim(config) and done(output, config)
    if finished:
        console.print(f"This task is finished: {output.results}. To do it again, set another output_dir.")
    return output, finished


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
