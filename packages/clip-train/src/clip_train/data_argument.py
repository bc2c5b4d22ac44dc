"""Where samples are, from one word on a command line: shards, a folder of them, or a folder of pictures."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from clip_data import SourceConfig
from clip_data.formats import FORMAT_BY_EXTENSION, FORMATS


def source_of(data: str, *, format: str | None = None, split: str | None = None, **options: Any) -> SourceConfig:
    """The source that a path stands for.

    Args:
        data: shards, as `SourceConfig.shards`; a folder of shards; a folder of class folders; a folder of pictures; or
            one that holds any of these in its folder `split`.
        format: of `SourceConfig`; by default what the names say.
        split: such as `test`, as CLIP_benchmark lays data sets out.
        **options: other fields of `SourceConfig`.

    Raises:
        ValueError: the format is unknown, or the names do not say it.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"the format is one of {', '.join(FORMATS)}; got {format!r}")
    if "://" not in data:
        data = os.path.abspath(os.path.expanduser(data))
    folder = Path(data)
    if split is not None and (folder / split).is_dir():
        folder = folder / split
    if folder.is_dir():
        return _of_folder(folder, format, options)
    guessed = format or FORMAT_BY_EXTENSION.get(Path(data).suffix)
    if guessed is None:
        raise ValueError(f"the name of {data} says no format: give one of {', '.join(FORMATS)}")
    return SourceConfig(format=guessed, shards=data, **options)  # pyright: ignore[reportArgumentType]


def _of_folder(folder: Path, format: str | None, options: dict[str, Any]) -> SourceConfig:
    extensions = sorted({path.suffix for path in folder.iterdir() if path.suffix in FORMAT_BY_EXTENSION})
    wanted = [name for name in extensions if format in (None, FORMAT_BY_EXTENSION[name])]
    if wanted and format not in ("folder", "class_folder"):
        pattern = os.path.join(glob.escape(str(folder)), f"*{wanted[0]}")
        found: Any = FORMAT_BY_EXTENSION[wanted[0]]
        return SourceConfig(format=found, shards=pattern, **options)
    has_folders = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    found = format or ("class_folder" if has_folders else "folder")
    return SourceConfig(format=found, shards=str(folder), **options)
