"""Records of every format in one shape, by the format's name: it is never guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from clip_data.config import SourceConfig
from clip_data.fault_log import NUM_SHARDS_JUDGED, FaultLog
from clip_data.faults import Fault, Reason, RecordError
from clip_data.fields import Record, to_record
from clip_data.filters import make_predicate
from clip_data.folder import ClassFolderReader, FolderReader
from clip_data.formats import Format
from clip_data.sources import list_shards
from clip_data.table import TableReader
from clip_data.tfrecord import TFRecordReader
from clip_data.webdataset import TarReader

__all__ = [
    "FOLDERS",
    "IndexedShard",
    "Reader",
    "Record",
    "list_source",
    "list_sources",
    "read_or_fault",
    "read_records",
    "scan",
]

FOLDERS: frozenset[Format] = frozenset({"folder", "class_folder"})
"""Formats whose shards are folders."""


_ENDS: frozenset[Reason] = frozenset({"shard_cut_short", "bad_length", "bad_shard", "empty_shard"})


class Reader(Protocol):
    """What a format's module offers: an open shard, whose records are read by number, from any thread."""

    fault: Fault | None
    """What is wrong with the shard as a whole."""

    def __len__(self) -> int: ...

    def offset(self, row: int) -> int | None:
        """Returns the byte offset of a record's data, where the format has such places."""
        ...

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields, among them ``__image__`` and ``__key__`` where the format says which they are.

        Raises:
            RecordError: It is damaged.
        """
        ...


def _parquet(path: str, source: SourceConfig, images: bool, in_order: bool) -> Reader:
    from clip_data.parquet import ParquetReader  # pyarrow.parquet takes longer to import than all else here

    return ParquetReader(path, image_key=source.image_key, images=images, in_order=in_order)


def _table(path: str, source: SourceConfig, images: bool, in_order: bool) -> Reader:
    delimiter = "\t" if source.format == "tsv" else ","
    return TableReader(path, delimiter=delimiter, image_key=source.image_key, images=images)


_READERS: dict[Format, Callable[[str, SourceConfig, bool, bool], Reader]] = {
    "tfrecord": lambda path, source, images, in_order: TFRecordReader(path),
    "webdataset": lambda path, source, images, in_order: TarReader(path),
    "parquet": _parquet,
    "csv": _table,
    "tsv": _table,
    "folder": lambda path, source, images, in_order: FolderReader(path, images=images),
    "class_folder": lambda path, source, images, in_order: ClassFolderReader(path, images=images),
}


class IndexedShard:
    """An open shard whose records are known by number.

    Args:
        source: The source it belongs to.
        path: As ``list_source`` returns it.
        images: False leaves images out: records need none, those of Parquet, tables and folders are not even read, and
            ``Record.image`` is empty.
        in_order: Whether records are read one after the other, and nothing need be held for later.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, source: SourceConfig, path: str, *, images: bool = True, in_order: bool = False):
        self.path = path
        self._source = source
        self._images = images
        self._reader = _READERS[source.format](path, source, images, in_order)
        self._wants = make_predicate(source.filters)
        self._unwanted: dict[int, tuple[str, str]] = {}
        self.fault = self._reader.fault

    def __len__(self) -> int:
        return len(self._reader)

    def offset(self, row: int) -> int | None:
        """Returns the byte offset of a record's data, where the format has such places."""
        return self._reader.offset(row)

    def lacks(self, stated: int) -> RecordError:
        """Returns what is wrong with a record that the shard does not have.

        Args:
            stated: Number of records that it was to hold.
        """
        if self.fault is not None and self.fault.reason in _ENDS:
            return RecordError(self.fault.reason, f"{len(self)} of {stated} records are left: {self.fault.detail}")
        return RecordError("wrong_count", f"its _stats.json states {stated} records, and it holds {len(self)}")

    def fields(self) -> Iterator[dict[str, Any]]:
        """Yields the stored fields of all records that are not damaged."""
        for row in range(len(self)):
            with contextlib.suppress(RecordError):
                yield self._reader.read(row)

    def read_stored(self, row: int) -> bytes:
        """Returns the bytes of a record as they are stored, of a TFRecord.

        Args:
            row: Its number.

        Raises:
            RecordError: Their checksum is wrong, or there is no such record.
        """
        if not isinstance(self._reader, TFRecordReader):
            raise TypeError(f"{self.path} is of format {self._source.format}: only TFRecords are stored in one piece")
        if row >= len(self):
            raise RecordError("shard_cut_short", f"{len(self)} records, and row {row} is none of them")
        return self._reader.read_stored(row)

    def read(self, row: int, *, draw: int = 0) -> Record:
        """Reads record number ``row``.

        Args:
            row: Its number.
            draw: 64 bits that choose among several captions.

        Raises:
            RecordError: It is damaged, lacks an image, or is not wanted by the source's filters.
        """
        if row in self._unwanted:  # drawn again as a replacement
            reason, key = self._unwanted[row]
            raise RecordError("filtered", reason, key=key)
        fields, offset = self._reader.read(row), self.offset(row)
        record = to_record(
            fields, self._source, shard=self.path, row=row, offset=offset, draw=draw, images=self._images
        )
        reason = self._wants(record.metadata, record.image) if self._source.filters else None
        if reason is not None:
            self._unwanted[row] = reason, record.key
            raise RecordError("filtered", reason, key=record.key)
        return record


def list_source(source: SourceConfig) -> list[str]:
    """Lists a source's shards, as ``list_shards`` does.

    Raises:
        FileNotFoundError: As ``list_shards``.
        PermissionError: Likewise.
        ValueError: Likewise; or a ``class_folder`` source names several folders.
    """
    paths = list_shards(source.shards, folders=source.format in FOLDERS)
    if source.format == "class_folder" and len(paths) > 1:
        raise ValueError(
            f"a class_folder source is one folder, of which each subfolder is a class; {source.shards} names "
            f"{len(paths)}: name the folder above them, or give each its own source"
        )
    return paths


def list_sources(sources: Sequence[SourceConfig]) -> list[list[str]]:
    """Lists the shards of several sources.

    Raises:
        FileNotFoundError: Shards are missing; those of all sources are named, and what may not be read.
        PermissionError: Some may not be read, and none is missing; likewise.
        ValueError: As ``list_source`` raises.
    """
    found: list[list[str]] = []
    errors: list[FileNotFoundError | PermissionError] = []
    for source in sources:
        try:
            found.append(list_source(source))
        except (FileNotFoundError, PermissionError) as error:
            errors.append(error)
    if errors:
        kind = PermissionError if all(isinstance(error, PermissionError) for error in errors) else FileNotFoundError
        raise kind("; ".join(map(str, errors)))
    return found


def read_records(source: SourceConfig, *, max_bad_fraction: float = 0.1) -> Iterator[Record]:
    """Reads every record of a source once, in the order of the shards.

    Args:
        source: What to read.
        max_bad_fraction: Share of records that may be damaged; they are logged and left out. It is judged at the end,
            and after each shard from the hundredth on.

    Yields:
        The records.

    Raises:
        DataError: More were damaged than ``max_bad_fraction`` allows, or none was left.
        FileNotFoundError: Some pattern names no shard.
    """
    log = FaultLog(max_bad_fraction=max_bad_fraction)
    for number, path in enumerate(list_source(source), start=1):
        shard = IndexedShard(source, path, in_order=True)
        log.start([shard.fault] if shard.fault else [])
        for item in scan(shard):
            log.add([item] if isinstance(item, Fault) else [], num_samples=1)
            if isinstance(item, Record):
                yield item
        if number >= NUM_SHARDS_JUDGED:
            log.judge()
    log.end_epoch(", ".join(source.patterns))


def scan(shard: IndexedShard) -> Iterator[Record | Fault]:
    """Reads every record of a shard, or says what is wrong with it; several captions are gone through in turn."""
    for row in range(len(shard)):
        yield read_or_fault(shard, row, draw=row << 32 | (row * 0x9E3779B9 & 0xFFFFFFFF))


def read_or_fault(shard: IndexedShard, row: int, *, draw: int = 0) -> Record | Fault:
    """Reads a record, or says what is wrong with it.

    Args:
        shard: An open shard.
        row: Number of the record.
        draw: As for ``IndexedShard.read``.
    """
    try:
        return shard.read(row, draw=draw)
    except RecordError as error:
        where = {"shard": shard.path, "row": row, "offset": shard.offset(row), "key": error.key}
        return Fault(**where, reason=error.reason, detail=error.detail)
