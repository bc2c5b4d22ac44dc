"""CSV and TSV tables of image paths and captions, whose first line names the columns.

A quoted field of a CSV may hold commas and line ends. That of a TSV ends on its line, for many writers of TSV know no
quotes: a caption that begins with one is taken as it is.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from clip_data.buckets import REMOTE
from clip_data.faults import Fault, RecordError, empty_shard
from clip_data.fields import IMAGE_KEYS
from clip_data.sources import open_shard

__all__ = ["TableReader", "find_path_column", "read_image_at"]

_PATH_KEYS = (*IMAGE_KEYS, "image_path", "filepath", "filename", "path", "file")
_ABSENT = (FileNotFoundError, PermissionError)
_ROWS_AT_ONCE = 1 << 16  # as Python objects


class TableReader:
    """An open table, as ``records.Reader`` describes it.

    Args:
        path: Where it is.
        delimiter: Between fields.
        image_key: Column of image paths, relative to the table's folder, or ``"auto"``.
        images: False reads no image, and needs no such column.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: str, *, delimiter: str, image_key: str, images: bool = True):
        self._path, self._reads_images = path, images
        self._columns: dict[str, Any] = {}
        self.fault: Fault | None = None
        shard = open_shard(path)
        if not shard.size:
            self.fault = empty_shard(path)
            return
        try:
            self._columns, wrong = _read_columns(shard.read_at(0, shard.size), delimiter)
            self._image = find_path_column(list(self._columns), image_key, is_needed=images)
        except ValueError as error:
            self._columns = {}
            self.fault = Fault(shard=path, reason="bad_shard", detail=f"no table: {error}", lost=False)
            return
        if wrong:
            lines = ", ".join(map(str, wrong[:10])) + ", …" * (len(wrong) > 10)
            detail = (
                f"{len(wrong)} lines were left out, whose fields are not as many as the first line's or whose quotes "
            )
            detail += f"do not end: {lines}"
            self.fault = Fault(shard=path, reason="bad_record", detail=detail, lost=False)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def offset(self, row: int) -> None:
        """Returns None: rows are known by number."""

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields, and its image from the file that the row names."""
        fields = {name: _decoded(column[row].as_py()) for name, column in self._columns.items()}
        name = fields.pop(self._image) if self._image else None
        key = fields.get("key") or name
        image = {"__image__": read_image_at(name, self._path, key=key)} if self._reads_images else {}
        return fields | image | {"__path__": name}


def find_path_column(names: Sequence[str], image_key: str, *, is_needed: bool = True) -> str | None:
    """Returns the column that holds the paths of images.

    Args:
        names: Of all columns.
        image_key: As in ``SourceConfig``.
        is_needed: Otherwise None is returned where there is none.

    Raises:
        ValueError: There is none, and it is needed.
    """
    wanted = _PATH_KEYS if image_key == "auto" else (image_key,)
    found = next((name for name in wanted if name in names), None)
    if found is None and is_needed:
        raise ValueError(f"no column {' or '.join(wanted)} of image paths; the columns are {', '.join(names)}")
    return found


def read_image_at(name: Any, table: str, *, key: Any) -> bytes:
    """Reads the image file that a table names.

    Args:
        name: Its path or URL, relative to the table's folder.
        table: Path of the table.
        key: Of the row, for errors.

    Raises:
        RecordError: ``null_image`` where no file is named, ``missing_image`` where there is none.
    """
    key = str(key or "")
    if name is None or name == "":
        raise RecordError("null_image", "no path", key=key)
    if not isinstance(name, str):
        raise RecordError("missing_image", f"{name!r:.100} is no path", key=key)
    path = os.path.join(os.path.dirname(table), name.removeprefix("file://")) if _is_local(name) else name
    if not path.startswith(REMOTE) and "://" in path:
        raise RecordError("missing_image", f"{path:.300} is an address; images are not downloaded", key=key)
    try:
        if "://" not in path and not os.path.isfile(path):  # or something that a read would wait for
            raise FileNotFoundError(f"{path:.300} is no file")
        shard = open_shard(path)
    except OSError as error:
        if isinstance(error, _ABSENT) or isinstance(error.__cause__, _ABSENT):
            raise RecordError("missing_image", str(error), key=key) from error
        raise  # the store fails: nothing is said of the image
    return shard.read_at(0, shard.size)


def _is_local(name: str) -> bool:
    return "://" not in name or name.startswith("file://")


def _read_columns(data: bytes, delimiter: str) -> tuple[dict[str, Any], list[int]]:
    """Returns the columns as bytes, undecoded, and the numbers of lines that do not fit."""
    import pyarrow as pa

    # Bytes that are not UTF-8 go through as they are: a wrong one in a caption is no reason to lose the table.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    found = (_tab_separated if delimiter == "\t" else _comma_separated)(io.StringIO(text, newline=""))
    _, names = next(found, (1, None))
    if names is None:
        raise ValueError("the first line cannot be read: a quote in it does not end")
    try:
        first_line = ", ".join(names).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the first line cannot be read ({error})") from error
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"the first line must name each column, once; it is {first_line!r:.100}")
    chunks: list[list[Any]] = [[] for _ in names]
    rows: list[list[bytes]] = []
    wrong: list[int] = []

    def store() -> None:
        for chunk, column in zip(chunks, zip(*rows, strict=True), strict=True):
            chunk.append(pa.array(column, pa.binary()))
        rows.clear()

    for number, row in found:
        if row is None or (row and len(row) != len(names)):
            wrong.append(number)
        elif row:  # a blank line is none
            rows.append([field.encode("utf-8", "surrogateescape") for field in row])
        if len(rows) == _ROWS_AT_ONCE:
            store()
    if rows:
        store()
    return {name: pa.chunked_array(chunk, pa.binary()) for name, chunk in zip(names, chunks, strict=True)}, wrong


def _comma_separated(file: io.StringIO) -> Iterator[tuple[int, list[str] | None]]:
    """Yields the number of each row's first line and its fields, or None where a quote goes wrong.

    A quoted field may go over several lines. Where it does not end as it should, its first line alone is given up.
    """
    again: deque[str] = deque()
    taken: list[str] = []

    def lines() -> Iterator[str]:
        while line := again.popleft() if again else file.readline():
            taken.append(line)
            yield line

    number = 1
    reader = csv.reader(lines(), strict=True)
    while True:
        taken.clear()
        try:
            row = next(reader, None)
        except csv.Error:
            row, reader = None, csv.reader(lines(), strict=True)
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
        if not taken:
            return
        yield number, row
        number += len(taken)


def _tab_separated(file: io.StringIO) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line and its fields; quotes are quotes only where they end on the line."""
    for number, line in enumerate(file, start=1):
        bare = line.rstrip("\r\n")
        fields = bare.split("\t") if bare else []
        if '"' in bare:
            with contextlib.suppress(csv.Error):
                (fields,) = csv.reader([line], delimiter="\t", strict=True)
        yield number, fields


def _decoded(value: bytes | None) -> str | bytes | None:
    """Decodes a field; bytes that are not UTF-8 stay as they are."""
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
