"""Where written files end up: a local folder, which appears or fills when all is written, or a prefix in a bucket.

Stores have no folders to rename: in a bucket the files appear one by one, and are deleted again where writing fails.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from clip_data.buckets import REMOTE, check_prefix, delete_object, write_object

__all__ = ["Destination", "open_destination"]

logger = logging.getLogger("clip_data")


class Destination(Protocol):
    """Takes files one after the other; at its end they are all there, or, after an exception, none of them."""

    room: Path
    """Local folder that a file is written to."""

    def keep(self, name: str) -> None:
        """Takes the file of this name, which is whole."""
        ...

    def path(self, name: str) -> str:
        """Returns where the file of this name ends up."""
        ...

    def __enter__(self) -> Destination: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None: ...


def open_destination(folder: str | os.PathLike[str]) -> Destination:
    """Checks that a folder can be written to.

    Args:
        folder: One that is new or empty: a local path, ``file://``, ``gs://`` or ``s3://``.

    Raises:
        FileExistsError: It holds something.
        FileNotFoundError: There is no such bucket.
        OSError: The store cannot be asked.
        ValueError: It is an address of another kind.
    """
    address = os.fspath(folder).removeprefix("file://")
    if address.startswith(REMOTE):
        return _Bucket(address.rstrip("/"))
    if "://" in address:
        raise ValueError(f"files are written to local folders, gs:// and s3://, not {address}")
    return _Folder(Path(address).expanduser())


class _Folder:
    """One that is there, empty, may be a link, a volume or where somebody stands: it stays, and files move into it."""

    def __init__(self, folder: Path):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} holds something already: name a folder that is new or empty")
        self._folder, self._place, self._is_there = folder, folder.resolve(), folder.exists()
        name = f".{self._place.name}.partial-{os.getpid()}"
        self.room = (self._place if self._is_there else self._place.parent) / name

    def keep(self, name: str) -> None:
        """Does nothing: the file lies where it belongs."""

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def __enter__(self) -> Destination:
        self.room.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None and self._is_there:
                for file in sorted(self.room.iterdir()):
                    file.rename(self._place / file.name)
            elif kind is None:
                self.room.rename(self._place)
        finally:
            shutil.rmtree(self.room, ignore_errors=True)  # gone already where all went well


class _Bucket:
    def __init__(self, prefix: str):
        check_prefix(prefix)
        self._prefix = prefix
        self._names: list[str] = []

    def keep(self, name: str) -> None:
        self._names.append(name)
        write_object(self.path(name), self.room / name)
        (self.room / name).unlink()

    def path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def __enter__(self) -> Destination:
        self.room = Path(tempfile.mkdtemp(prefix="clip-data-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        shutil.rmtree(self.room)
        if kind is not None:
            for name in self._names:
                try:
                    delete_object(self.path(name))
                except OSError as left:  # what went wrong before is what the caller is to hear of
                    logger.warning("%s is left behind, unfinished: %s", self.path(name), left)
