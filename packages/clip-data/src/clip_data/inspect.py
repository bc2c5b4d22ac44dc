"""What is in shards, and what is wrong with them: what ``clip-data inspect`` finds out."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from PIL import Image

from clip_data.config import SourceConfig
from clip_data.faults import SKIPPED, Fault, RecordError
from clip_data.fields import Record
from clip_data.image import decode_image
from clip_data.picture import picture_header
from clip_data.records import IndexedShard, list_source

__all__ = ["FieldReport", "Report", "ShardReport", "Spread", "Thumbnail", "inspect_source"]

_CHUNK = 256  # records that are decoded together
_NUM_FAULTS = 20  # kept of each shard, with their places
_THUMBNAIL_SIDE = 160


class Spread(NamedTuple):
    """Least value, median and largest value."""

    least: float
    median: float
    largest: float


class Thumbnail(NamedTuple):
    """A small picture, as the bytes of a JPEG file, and the record that it belongs to, without its image."""

    jpeg: bytes
    record: Record


@dataclass(kw_only=True)
class ShardReport:
    """One shard.

    Args:
        path: Where it is.
        num_bytes: Its size; None where the format's shards are folders or it is not local.
        num_records: That can be found in it.
        counts: Number of faults by reason.
        faults: The first of them.
    """

    path: str
    num_bytes: int | None
    num_records: int
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Counts a fault."""
        self.counts[fault.reason] += 1
        if fault.reason not in SKIPPED and len(self.faults) < _NUM_FAULTS:
            self.faults.append(fault)


@dataclass(kw_only=True)
class FieldReport:
    """One field of the records' metadata: how many hold something there, of which types, and an example."""

    num_filled: int = 0
    types: Counter[str] = field(default_factory=Counter)
    example: str = ""


@dataclass(kw_only=True)
class Report:
    """What ``inspect_source`` found; counts of contents are of the records that were read.

    Args:
        format: Of the shards.
        shards: One report for each.
        num_read: Records read, of all that there are.
        fields: Reports by name.
        image_types: Number of images by type.
        widths: Pixels, or None without images; so are the others.
        heights: Pixels.
        aspect_ratios: Longer side over shorter one.
        image_bytes: Sizes of the images' files.
        caption_lengths: Characters of the captions that are not blank.
        num_blank_captions: Missing, empty or all white space.
        num_same_captions: Those that came before.
        num_same_images: Those whose bytes came before.
        num_same_keys: Those that came before.
        labels: Number of records by label.
        thumbnails: Some of the records.
    """

    format: str
    shards: list[ShardReport]
    num_read: int = 0
    fields: dict[str, FieldReport] = field(default_factory=dict)
    image_types: Counter[str] = field(default_factory=Counter)
    widths: Spread | None = None
    heights: Spread | None = None
    aspect_ratios: Spread | None = None
    image_bytes: Spread | None = None
    caption_lengths: Spread | None = None
    num_blank_captions: int = 0
    num_same_captions: int = 0
    num_same_images: int = 0
    num_same_keys: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    thumbnails: list[Thumbnail] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(shard.num_records for shard in self.shards)

    @property
    def faults(self) -> list[Fault]:
        """The first faults of every shard."""
        return [fault for shard in self.shards for fault in shard.faults]

    def to_json(self) -> dict[str, Any]:
        """Returns all but the thumbnails, as JSON values."""
        left = {name: value for name, value in vars(self).items() if name != "thumbnails"}
        for name, value in left.items():
            if isinstance(value, Spread):
                left[name] = value._asdict()
        left["fields"] = {name: {**vars(about), "types": dict(about.types)} for name, about in self.fields.items()}
        left["shards"] = [
            {**vars(shard), "faults": [dataclasses.asdict(fault) for fault in shard.faults]} for shard in self.shards
        ]
        return {"num_records": self.num_records, **left}


class _Numbers:
    """What grows with every record, until it is summed up."""

    def __init__(self):
        self.widths: list[int] = []
        self.heights: list[int] = []
        self.image_bytes: list[int] = []
        self.caption_lengths: list[int] = []
        self.seen: dict[str, set[Any]] = {"keys": set(), "captions": set(), "images": set()}

    def is_again(self, kind: str, item: Any) -> bool:
        before = item in self.seen[kind]
        self.seen[kind].add(item)
        return before


def inspect_source(source: SourceConfig, *, sample: int = 0, num_thumbnails: int = 0) -> Report:
    """Reads shards and reports on them.

    Args:
        source: What to read.
        sample: Number of records to read and decode, spread evenly, where there are more; 0 is all of them.
        num_thumbnails: Number of pictures to keep.

    Raises:
        FileNotFoundError: Some pattern of the source names no shard.
        OSError: A shard cannot be read.
    """
    report = Report(format=source.format, shards=[])
    for path in list_source(source):
        shard = IndexedShard(source, path)
        num_bytes = os.path.getsize(path) if os.path.isfile(path) else None
        report.shards.append(ShardReport(path=path, num_bytes=num_bytes, num_records=len(shard)))
        if shard.fault is not None:
            report.shards[-1].add(shard.fault)
    total = report.num_records
    chosen = np.linspace(0, total - 1, sample).round().astype(int) if 0 < sample < total else np.arange(total)
    pictured = set(np.linspace(0, len(chosen) - 1, num_thumbnails).round().astype(int).tolist()) if total else set()
    numbers = _Numbers()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        items = enumerate(_records(source, report.shards, chosen))
        while chunk := list(itertools.islice(items, _CHUNK)):
            examined = threads.map(lambda item: _examine(item[1][1], thumbnail=item[0] in pictured), chunk)
            for (_, (shard, item)), (fault, thumbnail) in zip(chunk, examined, strict=True):
                report.num_read += 1
                if fault is not None:
                    shard.add(fault)
                if isinstance(item, Record):
                    _count(report, numbers, item)
                if thumbnail is not None:
                    report.thumbnails.append(thumbnail)
    _sum_up(report, numbers)
    return report


def _records(
    source: SourceConfig, shards: Sequence[ShardReport], chosen: np.ndarray
) -> Iterator[tuple[ShardReport, Record | Fault]]:
    """Reads the chosen records, by their numbers over all shards."""
    first = 0
    for report in shards:
        rows = chosen[(chosen >= first) & (chosen < first + report.num_records)] - first
        first += report.num_records
        if not len(rows):
            continue
        shard = IndexedShard(source, report.path)
        for row in rows.tolist():
            try:
                yield report, shard.read(row)
            except RecordError as error:
                where = {"shard": shard.path, "row": row, "offset": shard.offset(row)}
                yield report, Fault(**where, reason=error.reason, detail=error.detail)


def _examine(item: Record | Fault, *, thumbnail: bool) -> tuple[Fault | None, Thumbnail | None]:
    """Decodes a record's image."""
    if isinstance(item, Fault):
        return item, None
    where = {"shard": item.shard, "row": item.row, "offset": item.offset, "key": item.key}
    try:
        decode_image(item.image)
        small = _thumbnail(item) if thumbnail else None
    except RecordError as error:
        return Fault(**where, reason=error.reason, detail=error.detail), None
    if not item.caption_is_utf8:
        return Fault(**where, reason="caption_not_utf8", detail=f"read as {item.caption!r:.100}", lost=False), small
    return None, small


def _thumbnail(record: Record) -> Thumbnail:
    pixels = decode_image(record.image, size=_THUMBNAIL_SIDE, resize_mode="shortest")
    Image.fromarray(pixels).save(out := io.BytesIO(), "JPEG", quality=80)
    return Thumbnail(out.getvalue(), dataclasses.replace(record, image=b""))


def _count(report: Report, numbers: _Numbers, record: Record) -> None:
    for name, value in record.metadata.items():
        about = report.fields.setdefault(name, FieldReport())
        if value is None or value in ("", b""):
            continue
        about.num_filled += 1
        about.types[type(value).__name__] += 1
        about.example = about.example or _shown(value)
    try:
        header = picture_header(record.image)
        report.image_types[header.kind] += 1
        numbers.widths.append(header.width)
        numbers.heights.append(header.height)
    except RecordError:
        report.image_types["unknown"] += 1
    numbers.image_bytes.append(len(record.image))
    report.num_same_images += numbers.is_again("images", (len(record.image), google_crc32c.value(record.image)))
    report.num_same_keys += bool(record.key) and numbers.is_again("keys", record.key)
    if record.caption.strip():
        numbers.caption_lengths.append(len(record.caption))
        report.num_same_captions += numbers.is_again("captions", hash(record.caption))
    else:
        report.num_blank_captions += 1
    if record.label is not None:
        report.labels[record.label] += 1


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return f"{len(value)} bytes"
    return " ".join(str(value).split())[:80]


def _sum_up(report: Report, numbers: _Numbers) -> None:
    report.widths, report.heights = _spread(numbers.widths), _spread(numbers.heights)
    sides = zip(numbers.widths, numbers.heights, strict=True)
    report.aspect_ratios = _spread([max(side) / min(side) for side in sides if min(side)])
    report.image_bytes = _spread(numbers.image_bytes)
    report.caption_lengths = _spread(numbers.caption_lengths)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread(min(values), float(np.median(values)), max(values)) if values else None
