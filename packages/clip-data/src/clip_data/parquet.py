"""Parquet shards: a row for each record, with the image's bytes in a binary column or its path in one of text.

A row group is read as a whole when the first of its rows is wanted, and held while the shard is open, or until the next
one where rows are read in order. A shard whose
footer is lost or wrong cannot be read at all; a damaged row group loses its rows.

References:
    https://parquet.apache.org/docs/file-format
"""

from __future__ import annotations

import bisect
import io
import itertools
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clip_data.faults import Fault, RecordError, empty_shard
from clip_data.fields import IMAGE_KEYS
from clip_data.sources import Shard, open_shard
from clip_data.table import find_path_column, read_image_at

__all__ = ["ParquetReader", "write_rows"]

_ROWS_PER_GROUP = 100
_MAX_FOOTER_ITEMS = 10_000_000
_MAX_FOOTER_STRING = 256 << 20
_MAX_EXPANSION = 64  # bytes of a row group for each byte of the file, beyond those that are always allowed
_ALWAYS_ALLOWED = 1 << 30
_ROWS_AT_ONCE = 64
_MAX_ROWS = 1 << 20  # that a footer may always claim
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


class ParquetReader:
    """An open Parquet file, as ``records.Reader`` describes it.

    Args:
        path: Where it is.
        image_key: Column of the images or of their paths, or ``"auto"``.
        images: False reads no image, and needs no such column.
        in_order: Whether rows are read one after the other: then one row group is held at a time.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: str, *, image_key: str, images: bool = True, in_order: bool = False):
        self._path, self._reads_images, self._in_order = path, images, in_order
        self._lock = threading.Lock()
        self._groups: dict[int, _Group | str] = {}
        self._ends: list[int] = []
        self.fault: Fault | None = None
        shard = open_shard(path)
        if not shard.size:
            self.fault = empty_shard(path)
            return
        self._bytes = _ShardFile(shard)
        self._max_bytes = _ALWAYS_ALLOWED + _MAX_EXPANSION * shard.size
        try:
            self._file: pq.ParquetFile | None = pq.ParquetFile(
                pa.PythonFile(self._bytes, mode="r"),
                thrift_string_size_limit=_MAX_FOOTER_STRING,
                thrift_container_size_limit=_MAX_FOOTER_ITEMS,
            )
            self._ends = _row_ends(self._file.metadata, shard.size)
            self._image, self._holds_paths = _find_image(self._file.schema_arrow, image_key, images)
        except _DAMAGE as error:
            self._bytes.raise_failure()
            detail = f"not a Parquet file of images, or a damaged one ({str(error).strip():.300})"
            self._ends = []
            self.fault = Fault(shard=path, reason="bad_shard", detail=detail, lost=False)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def offset(self, row: int) -> None:
        """Returns None: rows are known by number."""

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields, those of its whole row group at hand afterwards."""
        number = bisect.bisect_right(self._ends, row)
        index, group = row - self._first(number), self._group(number)
        fields = {name: column[index] for name, column in group.columns.items()}
        image = None if group.images is None else group.images[index].as_py()
        if not self._holds_paths:
            return fields | ({"__image__": image} if self._reads_images else {})
        key = fields.get("key") or image
        found = {"__image__": read_image_at(image, self._path, key=key)} if self._reads_images else {}
        return fields | found | {"__path__": image}

    def _first(self, group: int) -> int:
        return self._ends[group - 1] if group else 0

    def _group(self, number: int) -> _Group:
        with self._lock:  # a file is read by one thread at a time
            group = self._groups.get(number)
            if group is None:
                try:
                    group = _Group.of(self._read_group(self._file, number), self._image)
                except _DAMAGE as error:
                    self._bytes.raise_failure()
                    group = f"row group {number} cannot be read ({error})"
                if self._in_order:
                    self._groups.clear()
                self._groups[number] = group
                if len(self._groups) == len(self._ends):
                    self._file = None  # which holds what it read last
        if isinstance(group, str):
            raise RecordError("bad_record", group)
        return group

    def _read_group(self, file: Any, number: int) -> pa.Table:
        """Reads a row group in steps: how much its dictionaries expand to, its footer does not tell.

        A row holds at most what the group does, so that no step can go far beyond what is allowed.
        """
        batches: list[pa.RecordBatch] = []
        num_bytes = 0
        size = max(file.metadata.row_group(number).total_byte_size, 1)
        if size > self._max_bytes:
            raise ValueError(f"{size} bytes, more than {self._max_bytes}, from a file of {self._bytes.size}")
        num_rows_at_once = min(max(self._max_bytes // (4 * size), 1), _ROWS_AT_ONCE)
        schema, names = file.schema_arrow, None
        # The pictures are most of a file, and a column that is not asked for is not read.
        if not self._reads_images and not self._holds_paths and self._image is not None and len(schema) > 1:
            schema = schema.remove(schema.get_field_index(self._image))
            names = schema.names
        for batch in file.iter_batches(num_rows_at_once, row_groups=[number], columns=names, use_threads=False):
            num_bytes += batch.nbytes
            if num_bytes > self._max_bytes:
                raise ValueError(f"more than {self._max_bytes} bytes from a file of {self._bytes.size}")
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema)
        table.validate()
        num_rows = self._ends[number] - self._first(number)
        if table.num_rows != num_rows:
            raise ValueError(f"{table.num_rows} rows where the footer claims {num_rows}")
        return table


class _Group(NamedTuple):
    """A row group: its images or their paths as pyarrow holds them, in few runs of memory, and the other columns."""

    images: pa.Array | pa.ChunkedArray | None
    columns: dict[str, list[Any]]

    @staticmethod
    def of(table: pa.Table, image: str | None) -> _Group:
        names = [name for name in table.column_names if name != image]
        columns = {name: _values(table.column(name)) for name in names}
        # In one run of memory: of small ones pyarrow's allocator leaves half as much again unused between them.
        images = table.column(image).combine_chunks() if image in table.column_names else None
        return _Group(images, columns)


def write_rows(path: str | os.PathLike[str], rows: Iterable[tuple[bytes, dict[str, Any]]]) -> int:
    """Writes one Parquet file, with the images in a column ``image``.

    Args:
        path: Where to; an existing file is replaced.
        rows: Of each the image's bytes, and the other columns: bytes, str, int, float, None or lists of one of them. A
            column whose types do not agree is written as text.

    Returns:
        The number of rows written.
    """
    lengths: list[int] = []
    columns: dict[str, list[Any]] = {}
    # What columns there are is known after the last row: until then the images wait on the disk, not in memory.
    with tempfile.TemporaryFile(dir=os.path.dirname(path) or ".") as images:
        for image, values in rows:
            for name, value in values.items():
                columns.setdefault(name, [None] * len(lengths)).append(value)
            lengths.append(len(image))
            for column in columns.values():
                column.extend([None] * (len(lengths) - len(column)))
            images.write(image)
        images.seek(0)
        table = pa.table({name: _array(values) for name, values in columns.items()})
        schema = table.schema.append(pa.field("image", pa.binary()))
        options: Any = {
            "compression": {name: "NONE" if name == "image" else "SNAPPY" for name in schema.names},
            "use_dictionary": table.column_names,
            "write_statistics": table.column_names,
        }
        with pq.ParquetWriter(path, schema, **options) as writer:
            for first in range(0, len(lengths), _ROWS_PER_GROUP):
                group = table.slice(first, _ROWS_PER_GROUP)
                data = [images.read(length) for length in lengths[first : first + _ROWS_PER_GROUP]]
                writer.write_table(group.append_column("image", pa.array(data, pa.binary())))
    return len(lengths)


def _array(values: list[Any]) -> pa.Array:
    if any(isinstance(value, list) for value in values):  # a caption here, several there
        values = [value if value is None or isinstance(value, list) else [value] for value in values]
    try:
        return pa.array(values)
    except pa.ArrowException:
        texts = [
            value if value is None or isinstance(value, str) else json.dumps(value, default=repr) for value in values
        ]
        return pa.array(texts, pa.string())


class _ShardFile(io.RawIOBase):
    """A shard as a file that pyarrow reads."""

    def __init__(self, shard: Shard):
        self.size = shard.size
        self._shard = shard
        self._position = 0
        self._failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self.size - self._position, 0)
        try:
            data = self._shard.read_at(self._position, left if size is None or size < 0 else min(size, left))
        except OSError as error:
            self._failure = error
            raise
        self._position += len(data)
        return data

    def raise_failure(self) -> None:
        """Raises what a read raised, if one did: a store that fails is no damage in the file."""
        if self._failure is not None:
            raise self._failure


def _row_ends(metadata: pq.FileMetaData, size: int) -> list[int]:
    """Returns the number of rows up to the end of each row group, after checking what the footer claims."""
    num_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(num_rows, default=0) < 0 or sum(num_rows) > max(_MAX_ROWS, _MAX_EXPANSION * size):
        raise ValueError(f"it claims {sum(num_rows)} rows in {size} bytes")
    return list(itertools.accumulate(num_rows))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Returns a column's values; text that is not UTF-8 stays bytes, and times become text, in UTC."""
    if pa.types.is_timestamp(column.type):  # not every machine knows every zone
        column = column.cast(pa.timestamp(column.type.unit))
    if pa.types.is_temporal(column.type):  # Python has no nanoseconds
        return column.cast(pa.string()).to_pylist()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return _as_bytes(column.combine_chunks()).to_pylist()


def _as_bytes(values: Any) -> pa.Array:
    """Returns texts as bytes, wherever they are in lists and structs; all else as it is."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(_bytes_type(values.type))


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_bytes_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _bytes_type(field.type)) for field in kind])
    return kind


def _find_image(schema: pa.Schema, image_key: str, is_needed: bool) -> tuple[str | None, bool]:
    """Returns the column of the images, and whether it holds their paths; None where there need be none.

    Named columns come first, then the only one that can hold bytes.
    """
    binary = [field.name for field in schema if _holds_bytes(field.type)]
    wanted = IMAGE_KEYS if image_key == "auto" else (image_key,)
    found = next((name for name in wanted if name in binary), None)
    if found is None and image_key == "auto" and len(binary) == 1 and is_needed:
        found = binary[0]
    if found is not None:
        return found, False
    try:
        found = find_path_column(
            [field.name for field in schema if _holds_text(field.type)], image_key, is_needed=is_needed
        )
    except ValueError:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        names = " or ".join(wanted)
        raise ValueError(f"no column {names} of images or of their paths; the columns are {columns}") from None
    return found, found is not None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_long = pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return pa.types.is_binary(kind) or is_long or pa.types.is_fixed_size_binary(kind)


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
