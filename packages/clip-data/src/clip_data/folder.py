"""Folders of image files: beside ``.txt`` captions of one stem, or in one subfolder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from clip_data.faults import Fault, RecordError
from clip_data.fields import IMAGE_KEYS, parse_json

__all__ = ["ClassFolderReader", "FolderReader"]

_BESIDE = ("txt", "json", "cls")  # what may lie beside an image
_IMAGES = (*IMAGE_KEYS, "gif")


class FolderReader:
    """A folder, and all below it, of images with what lies beside them, as ``records.Reader`` describes it.

    ``NAME.jpg`` takes its caption from ``NAME.txt``, its label from ``NAME.cls`` and its metadata from ``NAME.json``,
    the layout that img2dataset's ``files`` has too. Records are in the order of their paths; hidden files are left out.

    Args:
        path: The folder.
        images: False reads what lies beside them alone.

    Raises:
        OSError: It cannot be listed.
    """

    def __init__(self, path: str, *, images: bool = True):
        self._folder, self._reads_images = path, images
        self._names, beside = _find_images(path)
        self._beside = [beside.get(os.path.splitext(name)[0], ()) for name in self._names]
        self.fault: Fault | None = None
        if not self._names:
            detail = "no image file in the folder or below; shards in it are named by a glob, DIR/*.tar"
            self.fault = Fault(shard=path, reason="empty_shard", detail=detail, lost=False)

    def __len__(self) -> int:
        return len(self._names)

    def offset(self, row: int) -> None:
        """Returns None: files have no offset."""

    def name(self, row: int) -> str:
        """Returns the path of a record's image, relative to the folder."""
        return self._names[row]

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields."""
        stem = os.path.splitext(self._names[row])[0]
        key = os.fsencode(stem).decode("utf-8", "replace")
        fields: dict[str, Any] = {}
        try:
            for extension in self._beside[row]:
                data, kind = self._read(f"{stem}.{extension}"), extension.lower()
                fields |= parse_json(data, f"{key}.json", key=key) if kind == "json" else {kind: data}
            image = {"__image__": self._read(self._names[row])} if self._reads_images else {}
        except RecordError as error:
            error.key = key
            raise
        return fields | image | {"__key__": key}

    def _read(self, name: str) -> bytes:
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        except OSError as error:
            raise RecordError("missing_image", f"{name} cannot be read ({error.strerror})") from error


class ClassFolderReader:
    """A folder with one subfolder of images for each class, as ``records.Reader`` describes it.

    A record's label is the rank of its class among the subfolders' names, its caption the name.

    Args:
        path: The folder of the classes' folders.
        images: As for ``FolderReader``.

    Raises:
        OSError: It cannot be listed.
    """

    def __init__(self, path: str, *, images: bool = True):
        self._images = FolderReader(path, images=images)
        self.fault = self._images.fault
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
        self._labels = {name: label for label, name in enumerate(names)}
        self._rows = [row for row in range(len(self._images)) if "/" in self._images.name(row)]
        if len(self._images) and not self._rows:
            detail = "the images lie in the folder itself, not in one for each class"
            self.fault = Fault(shard=path, reason="empty_shard", detail=detail, lost=False)

    def __len__(self) -> int:
        return len(self._rows)

    def offset(self, row: int) -> None:
        """Returns None: files have no offset."""

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields."""
        fields = self._images.read(self._rows[row])
        name = self._images.name(self._rows[row]).partition("/")[0]
        return {"caption": name} | fields | {"class": name, "label": self._labels[name]}


def _find_images(folder: str) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the names of the images below a folder, and for each stem what lies beside it."""
    names: list[str] = []
    beside: dict[str, list[str]] = {}
    for name in _walk(folder, ""):
        stem, extension = os.path.splitext(name)
        kind = extension[1:].lower()
        if kind in _IMAGES:
            names.append(name)
        elif kind in _BESIDE:
            beside.setdefault(stem, []).append(extension[1:])
    return sorted(names), beside


def _walk(root: str, below: str) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it; links to folders are not followed."""
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{below}{entry.name}/")
            elif entry.is_file():
                yield below + entry.name
