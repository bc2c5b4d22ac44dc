"""What is in shards, and what is wrong with them: what ``clip-data inspect`` finds out."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
from PIL import Image

from clip_data.config import SourceConfig
from clip_data.faults import Fault, RecordError
from clip_data.fields import Record
from clip_data.image import decode_image
from clip_data.inspect_report import FieldReport, Report, ShardReport, Spread, Thumbnail
from clip_data.keys import KeyLog
from clip_data.picture import picture_header
from clip_data.records import IndexedShard, list_source, read_or_fault

__all__ = ["inspect_source"]

_CHUNK = 256  # records that are decoded together
_THUMBNAIL_SIDE = 160


class _Numbers:
    """What grows with every record, until it is summed up."""

    def __init__(self):
        self.widths: list[int] = []
        self.heights: list[int] = []
        self.image_bytes: list[int] = []
        self.caption_lengths: list[int] = []
        self.seen: dict[str, set[Any]] = {"keys": set(), "captions": set(), "images": set()}
        self.keys = KeyLog()

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
                    again = None if item.key_is_path else numbers.keys.add(item.key, item.shard, item.row)
                    if again is not None:
                        shard.add(again)
                if thumbnail is not None:
                    report.thumbnails.append(thumbnail)
    _sum_up(report, numbers)
    if numbers.image_bytes and not numbers.caption_lengths and not report.labels:
        detail = f"none of {len(numbers.image_bytes)} records has a caption or a label; the fields are "
        fault = Fault(
            shard=", ".join(source.patterns), reason="empty_caption", detail=detail + ", ".join(report.fields)
        )
        report.remarks.append(fault)
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
        shard = IndexedShard(source, report.path, in_order=True)
        for row in rows.tolist():
            yield report, read_or_fault(shard, row)


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
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(str(value).split())[:80])


def _sum_up(report: Report, numbers: _Numbers) -> None:
    report.widths, report.heights = _spread(numbers.widths), _spread(numbers.heights)
    sides = zip(numbers.widths, numbers.heights, strict=True)
    report.aspect_ratios = _spread([max(side) / min(side) for side in sides if min(side)])
    report.image_bytes = _spread(numbers.image_bytes)
    report.caption_lengths = _spread(numbers.caption_lengths)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread(min(values), float(np.median(values)), max(values)) if values else None
