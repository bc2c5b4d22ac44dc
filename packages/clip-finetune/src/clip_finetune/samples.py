"""The labelled samples of a task: which part each one is in, what it is labelled, and what was wrong with some."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clip_data import Batch, DataConfig, Pipeline, Record, SourceConfig
from clip_train.evaluate import AllLabels, labels_of, targets_of

Part = Literal["train", "validation", "test"]


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
        name = f"{self.seed}/{os.path.basename(record.shard)}/{record.key}/{record.row}"
        draw = zlib.crc32(name.encode()) / 2**32
        part = "test" if draw < self.test else "validation" if draw < self.test + self.validation else "train"
        return record if part == self.part else None


@dataclasses.dataclass(frozen=True)
class Both:
    """Two transforms of records, one after the other."""

    first: Any
    second: Any

    @property
    def identity(self) -> str:
        """What a cursor knows it by."""
        return f"{self.first.identity}; {self.second.identity}"

    def __call__(self, record: Record) -> Record | None:
        """What the second makes of what the first makes of a record."""
        made = self.first(record)
        return None if made is None else self.second(made)


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of one part of a task.

    Attributes:
        source: where they are.
        classnames: in label order.
        multi_label: whether one may have several labels.
        split: that keeps this part of the source; None: all of it.
    """

    source: SourceConfig
    classnames: tuple[str, ...]
    multi_label: bool = False
    split: Split | None = None

    def pipeline(self, data: DataConfig, *, batch_size: int, **options: Any) -> Pipeline:
        """Batches of them, in order and once unless `options` say otherwise.

        Args:
            data: how pictures are prepared; its sources are not read.
            batch_size: of each batch.
            **options: other fields of `DataConfig`.
        """
        source, transform = self.source, self.split
        if self.multi_label:
            labels = AllLabels(source.label_key)
            source = dataclasses.replace(source, label_key=None)  # several labels are no integer
            transform = labels if transform is None else Both(transform, labels)
        changes = {"shuffle": False, "num_epochs": 1, "tokenizer": None, "transform": transform, **options}
        return Pipeline(dataclasses.replace(data, sources=(source,), **changes), global_batch_size=batch_size)

    def targets(self, batch: Batch) -> np.ndarray:
        """Of the real rows: labels int32 `[n]`, or multi-hot `[n, c]`.

        Raises:
            ValueError: a sample has no label, or one that is no class.
        """
        return (targets_of if self.multi_label else labels_of)(batch, len(self.classnames))


def check_classes(source: SourceConfig, classnames: tuple[str, ...]) -> None:
    """Refuse a task that is none: fewer than two classes, or a class folder without a picture.

    Raises:
        ValueError: naming the classes.
    """
    if len(classnames) < 2:
        raise ValueError(f"a classifier needs at least two classes; got {', '.join(classnames) or 'none'}")
    if source.format == "class_folder":
        root = Path(source.patterns[0])
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if empty := [path.name for path in folders if not any(_files(path))]:
            raise ValueError(f"every class folder holds pictures; these are empty: {', '.join(empty)}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
