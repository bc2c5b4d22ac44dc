"""Records of every format in one shape, by the format's name: it is never guessed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from clip_data.config import Format, SourceConfig
from clip_data.faults import Fault, FaultLog, RecordError
from clip_data.sources import Shard, list_shards, open_shard
from clip_data.tfrecord import index_tfrecord, read_example
from clip_data.webdataset import index_tar, read_sample

__all__ = ["IndexedShard", "Record", "read_records"]

_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "image")
_CAPTION_KEYS = ("caption", "txt", "text")
_LABEL_KEYS = ("cls", "label")
_NOTHING = (None, b"", "")  # how the formats store null


class _Reader(NamedTuple):
    index: Callable[[Shard], tuple[list[Any], Fault | None]]
    read: Callable[[Shard, Any], dict[str, Any]]
    offset: Callable[[Any], int]


_READERS: dict[Format, _Reader] = {
    "tfrecord": _Reader(index_tfrecord, read_example, lambda entry: entry[0]),
    "webdataset": _Reader(index_tar, read_sample, lambda entry: min(offset for offset, _ in entry[1].values())),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it is stored.

    Args:
        key: Its key, for people; not always unique.
        image: The bytes of an image file, not yet looked at.
        caption: Its text, ``""`` where it has none.
        label: Its class, or None.
        metadata: All other fields.
        shard: Path of the shard it came from.
        offset: Byte offset of its data in the shard.
        caption_is_utf8: False where bytes of the caption had to be replaced by U+FFFD.
    """

    key: str
    image: bytes
    caption: str
    label: int | None
    metadata: dict[str, Any]
    shard: str
    offset: int
    caption_is_utf8: bool = True


class IndexedShard:
    """An open shard whose records are known by number.

    Args:
        source: The source it belongs to.
        path: As ``list_shards`` returns it.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, source: SourceConfig, path: str):
        self.path = path
        self._source = source
        self._reader = _READERS[source.format]
        self._shard = open_shard(path)
        self._entries, self.fault = self._reader.index(self._shard)
        if self._shard.size == 0:
            self.fault = Fault(shard=path, offset=0, reason="empty_shard", detail="the file is empty", lost=False)

    def __len__(self) -> int:
        return len(self._entries)

    def offset(self, row: int) -> int:
        """Returns the byte offset of a record's data."""
        return self._reader.offset(self._entries[row])

    def read(self, row: int) -> Record:
        """Reads record number ``row``.

        Raises:
            RecordError: It is damaged, or lacks an image.
        """
        fields = self._reader.read(self._shard, self._entries[row])
        return _to_record(fields, self._source, self.path, self.offset(row))


def read_records(source: SourceConfig, *, max_bad_fraction: float = 0.1) -> Iterator[Record]:
    """Reads every record of a source once, in the order of the shards.

    Args:
        source: What to read.
        max_bad_fraction: Share of records that may be damaged; they are logged and left out.

    Yields:
        The records.

    Raises:
        DataError: More were damaged than ``max_bad_fraction`` allows.
        FileNotFoundError: Some pattern names no shard.
    """
    log = FaultLog(max_bad_fraction=max_bad_fraction)
    for path in list_shards(source.shards):
        shard = IndexedShard(source, path)
        log.add([shard.fault] if shard.fault else [], num_samples=0)
        for row in range(len(shard)):
            try:
                record = shard.read(row)
            except RecordError as error:
                fault = Fault(shard=path, offset=shard.offset(row), reason=error.reason, detail=error.detail)
                log.add([fault], num_samples=1)
            else:
                log.add([], num_samples=1)
                yield record


def _to_record(fields: dict[str, Any], source: SourceConfig, shard: str, offset: int) -> Record:
    image_key = _find(fields, source.image_key, _IMAGE_KEYS)
    image = fields.pop(image_key) if image_key else None
    if not isinstance(image, bytes) or not image:
        names = _IMAGE_KEYS if source.image_key == "auto" else (source.image_key,)
        raise RecordError("missing_image", f"no bytes in {' or '.join(names)}; the fields are {', '.join(fields)}")
    caption_key = _find(fields, source.caption_key, _CAPTION_KEYS)
    caption, is_utf8 = _text(fields.get(caption_key or ""))
    label_key = _find(fields, source.label_key or "auto", _LABEL_KEYS)
    has_label = label_key is not None and fields[label_key] not in _NOTHING
    if source.label_key is not None and not has_label:
        raise RecordError("missing_label", f"nothing in {source.label_key!r}; the fields are {', '.join(fields)}")
    key, _ = _text(fields.pop("__key__", None) or fields.get("key"))
    return Record(
        key=key,
        image=image,
        caption=caption,
        label=_label(fields[label_key], label_key) if label_key and has_label else None,
        metadata=fields,
        shard=shard,
        offset=offset,
        caption_is_utf8=is_utf8,
    )


def _find(fields: dict[str, Any], name: str, usual: tuple[str, ...]) -> str | None:
    """Returns the first of the names that holds something, else the first that is there at all."""
    present = [key for key in (usual if name == "auto" else (name,)) if key in fields]
    return next((key for key in present if fields[key] not in _NOTHING), present[0] if present else None)


def _text(value: Any) -> tuple[str, bool]:
    """Returns a field as text, and whether it was UTF-8."""
    if value is None or isinstance(value, str):
        return value or "", True
    if not isinstance(value, bytes):
        return str(value), True
    try:
        return value.decode("utf-8"), True
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace"), False


def _label(value: Any, name: str) -> int:
    try:
        label = operator.index(value) if not isinstance(value, str | bytes) else int(value)
    except (TypeError, ValueError) as error:
        raise RecordError("bad_record", f"{name} must be an integer, not {value!r:.100}") from error
    if not -(1 << 31) <= label < 1 << 31:
        raise RecordError("bad_record", f"{name} must fit into 32 bits, not be {label}")
    return label
