"""Records to shards: what ``clip-data write`` does."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clip_data.config import SourceConfig
from clip_data.destination import Destination, open_destination
from clip_data.faults import DataError, Fault, RecordError
from clip_data.fields import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS, Record
from clip_data.image import decode_image
from clip_data.picture import picture_header
from clip_data.records import IndexedShard, list_source, scan
from clip_data.tfrecord import write_examples
from clip_data.webdataset import write_samples

__all__ = ["ShardFormat", "Written", "write_shards"]

ShardFormat = Literal["tfrecord", "webdataset", "parquet"]

_EXTENSIONS: dict[ShardFormat, str] = {"tfrecord": "tfrecord", "webdataset": "tar", "parquet": "parquet"}
_FILE_TYPES = {"jpeg": "jpg"}
# What a reader would take for the image, the key, the caption or the label.
_OWN_FIELDS = frozenset({*IMAGE_KEYS, "gif", "key", "caption", "txt", "label", "cls"})
_MEMBERS = _OWN_FIELDS | {"json"}
_MAX_MEMBER = 60  # characters of a name; a tar file has room for a hundred
_CHUNK = 256  # records that are verified together
_NUM_EXAMPLES = 20
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What ``write_shards`` did.

    Args:
        shards: Paths of the shards.
        num_records: Records in them.
        left_out: Number of faults by reason.
        faults: The first of them, and all of whole shards.
    """

    shards: tuple[str, ...]
    num_records: int
    left_out: dict[str, int]
    faults: tuple[Fault, ...]


def write_shards(
    source: SourceConfig,
    folder: str | os.PathLike[str],
    *,
    format: ShardFormat,
    samples_per_shard: int = 10_000,
    verify: bool = True,
    keep_uncaptioned: bool = False,
    progress: Callable[[int], object] = lambda num_records: None,
) -> Written:
    """Packs all records of a source into shards, in their order.

    Each record gets a new key, of its shard's and its own number; one that it had becomes ``original_key``. Images are
    written as they are. Other fields keep their names and values, several captions stay several; a field that would be
    taken for the image, the caption or the label without being it becomes ``original_NAME``. Bytes that are no text are
    members of their own in a tar file, under their names in lower case. The same source gives the same bytes.

    A local folder appears, or fills, when all is written, or not at all; in a bucket the shards appear one by one, and
    are deleted again if writing fails.

    Args:
        source: What to read.
        folder: Where to; a folder that does not exist, or is empty: local, or in a bucket (``gs://`` or ``s3://``).
        format: Of the shards.
        samples_per_shard: Of each but the last.
        verify: Whether every image is decoded, strictly, and left out where that fails.
        keep_uncaptioned: Whether to keep records that have neither caption nor label.
        progress: Called with the number of records so far, now and then.

    Returns:
        What was written, and what was left out.

    Raises:
        DataError: No record is left to write.
        FileExistsError: The folder holds something.
        FileNotFoundError: Some pattern of the source names no shard, or the folder no bucket.
        OSError: Something cannot be read or written.
        ValueError: A value outside what is said above.
    """
    if format not in get_args(ShardFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(ShardFormat))}, not {format!r}")
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, not {samples_per_shard}")
    log = _Log()
    records = _usable(source, log, verify=verify, keep_uncaptioned=keep_uncaptioned)
    with open_destination(folder) as destination:
        names, num_records = _write_all(records, destination, format, samples_per_shard, progress)
        if not num_records:
            raise DataError(f"no record of {source.shards} can be written{log.summary()}")
    return Written(
        shards=tuple(map(destination.path, names)),
        num_records=num_records,
        left_out=dict(log.counts),
        faults=tuple(log.faults),
    )


class _Log:
    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self.counts[fault.reason] += 1
        if self.counts[fault.reason] <= _NUM_EXAMPLES or not fault.lost:
            self.faults.append(fault)

    def summary(self) -> str:
        if not self.faults:
            return ""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f" ({counts}). The first: {self.faults[0]}"


def _usable(source: SourceConfig, log: _Log, *, verify: bool, keep_uncaptioned: bool) -> Iterator[Record]:
    def found() -> Iterator[Record | Fault]:
        for path in list_source(source):
            shard = IndexedShard(source, path, in_order=True)
            if shard.fault is not None:
                log.add(shard.fault)
            yield from scan(shard)

    def check(item: Record | Fault) -> Record | Fault:
        if isinstance(item, Fault):
            return item
        try:
            if not keep_uncaptioned and item.label is None and not item.caption.strip():
                fields = ", ".join(item.metadata)
                raise RecordError("empty_caption", f"the caption is {item.caption!r}; the fields are {fields}")
            picture_header(item.image)
            if verify:
                decode_image(item.image)
        except RecordError as error:
            where = {"shard": item.shard, "row": item.row, "offset": item.offset, "key": item.key}
            return Fault(**where, reason=error.reason, detail=error.detail)
        return item

    items = found()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while chunk := list(itertools.islice(items, _CHUNK)):
            for item in threads.map(check, chunk):
                if isinstance(item, Fault):
                    log.add(item)
                else:
                    yield item


def _write_all(
    records: Iterator[Record], destination: Destination, form: ShardFormat, size: int, progress: Callable[[int], object]
) -> tuple[list[str], int]:
    writer = _WRITERS[form]
    digits = max(len(str(size - 1)), 4)
    names: list[str] = []
    total = 0
    while (first := next(records, None)) is not None:
        shard = itertools.chain([first], itertools.islice(records, size - 1))
        number = len(names)
        name, stats = f"{number:05d}.{_EXTENSIONS[form]}", f"{number:05d}_stats.json"
        keys = (f"{number:05d}{row:0{digits}d}" for row in itertools.count())
        count = writer(destination.room / name, _counted(zip(keys, shard, strict=False), total, progress))
        destination.keep(name)
        (destination.room / stats).write_text(json.dumps({"count": count, "successes": count}))
        destination.keep(stats)
        names.append(name)
        total += count
    return names, total


def _counted(
    items: Iterable[tuple[str, Record]], total: int, progress: Callable[[int], object]
) -> Iterator[tuple[str, Record]]:
    for number, item in enumerate(items, start=total + 1):
        yield item
        if number % 100 == 0:
            progress(number)


def _write_tfrecord(path: Path, items: Iterable[tuple[str, Record]]) -> int:
    return write_examples(path, ({"image": record.image} | _columns(key, record) for key, record in items))


def _write_webdataset(path: Path, items: Iterable[tuple[str, Record]]) -> int:
    return write_samples(path, ((key, _members(key, record)) for key, record in items))


def _write_parquet(path: Path, items: Iterable[tuple[str, Record]]) -> int:
    from clip_data.parquet import write_rows  # pyarrow.parquet takes longer to import than all else here

    return write_rows(path, ((record.image, _columns(key, record)) for key, record in items))


_WRITERS = {"tfrecord": _write_tfrecord, "webdataset": _write_webdataset, "parquet": _write_parquet}


def _members(key: str, record: Record) -> dict[str, bytes]:
    kind = picture_header(record.image).kind
    members = {_FILE_TYPES.get(kind, kind): record.image, "txt": _clean(record.caption).encode()}
    if record.label is not None:
        members["cls"] = str(record.label).encode()
    texts: dict[str, Any] = {}
    for name, value in _columns(key, record).items():
        if isinstance(value, bytes):  # that are no text, such as an embedding: they have no place in JSON
            members[_member_name(name, {*members, *_MEMBERS})] = value
        else:
            texts[name] = value
    return members | {"json": json.dumps(texts, ensure_ascii=False).encode()}


def _member_name(name: str, taken: set[str]) -> str:
    member = re.sub(r"[^a-z0-9_.-]", "_", name.lower())[:_MAX_MEMBER]
    while member in taken:
        member += "_"
    return member


def _columns(key: str, record: Record) -> dict[str, Any]:
    """Returns all but the image, as values that every format can hold."""
    columns: dict[str, Any] = {"key": key, "caption": _captions(record)}
    if record.label is not None:
        columns["label"] = record.label
    for name, value in record.metadata.items():
        plain = _plain(value)
        if name.lower() not in _OWN_FIELDS or (name in LABEL_KEYS and record.label is None):
            columns[name] = plain
        elif name != "key" and plain not in (None, "", columns["caption"]) and not _is_written(name, plain, record):
            columns[f"original_{name}"] = plain
    if record.key:
        columns.setdefault("original_key", _clean(record.key))
    return columns


def _captions(record: Record) -> str | list[str]:
    """Returns the caption, or all of them where the field that it was drawn from holds several."""
    caption = _clean(record.caption)
    for name in CAPTION_KEYS:
        several = record.metadata.get(name)
        if isinstance(several, list | tuple):
            several = [text for text in map(_plain, several) if isinstance(text, str) and text.strip()]
            if caption in several:
                return several
    return caption


def _is_written(name: str, plain: Any, record: Record) -> bool:
    """Whether a field says what the record's caption or label does."""
    if name in LABEL_KEYS:
        return str(plain).strip() == str(record.label)
    return plain == _clean(record.caption)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _clean(value)
    if value is None or (isinstance(value, int) and value in _INT64):
        return value
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        if items and any(all(type(item) is kind for item in items) for kind in (str, int, float)):
            return items
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=repr)
    return str(value)


def _clean(text: str) -> str:
    """Replaces halves of surrogate pairs, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode("utf-8")
