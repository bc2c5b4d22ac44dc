"""Which part of a task a sample is in: its name and a seed decide."""

from __future__ import annotations

import dataclasses
import os
import zlib

from clip_data import Record
from clip_finetune.samples import Part


@dataclasses.dataclass(frozen=True)
class Split:
    """A transform of records that keeps those of one part; which one a record is in, its name and the seed decide.

    Attributes:
        part: to keep.
        validation: share of the records.
        test: likewise.
        seed: of the draw.
    """

    part: Part
    validation: float
    test: float
    seed: int

    @property
    def identity(self) -> str:
        """What a cursor knows it by."""
        return f"{self.part} of {self.validation}, {self.test}, {self.seed}"

    def __call__(self, record: Record) -> Record | None:
        """The record, or None where it is in another part."""
        return record if self.holds(record.shard, record.key, record.row) else None

    def holds(self, shard: str, key: str, row: int) -> bool:
        """Whether the record of this name is in the part."""
        name = f"{self.seed}/{os.path.basename(shard)}/{key}/{row}"
        draw = zlib.crc32(name.encode()) / 2**32
        part = "test" if draw < self.test else "validation" if draw < self.test + self.validation else "train"
        return part == self.part
