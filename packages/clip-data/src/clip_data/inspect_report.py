"""What is known of shards once they are inspected."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clip_data.faults import SKIPPED, Fault
from clip_data.fields import Record

__all__ = ["FieldReport", "Report", "ShardReport", "Spread", "Thumbnail"]

_NUM_FAULTS = 20  # kept of each shard, with their places


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
        remarks: What is wrong with all of them.
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
    remarks: list[Fault] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(shard.num_records for shard in self.shards)

    @property
    def faults(self) -> list[Fault]:
        """What is wrong with all records, and the first faults of every shard."""
        return [*self.remarks, *(fault for shard in self.shards for fault in shard.faults)]

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
        left["remarks"] = [dataclasses.asdict(fault) for fault in self.remarks]
        return {"num_records": self.num_records, **left}
