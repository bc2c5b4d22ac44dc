"""The labelled samples of a task: which part each one is in, what it is labelled, and what was wrong with some."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from clip_data import Batch, Pipeline, Record, SourceConfig
from clip_data.records import list_source
from clip_models import ClipConfig
from clip_train.evaluate import AllLabels, labels_of, targets_of
from clip_train.inputs import data_config, image_arrays, pictures_of

Part = Literal["train", "validation", "test"]


class Rows(NamedTuple):
    """A batch of samples.

    Attributes:
        arrays: what the tower reads, of b rows.
        mask: bool `[b]`, False at rows that only fill the batch up.
        targets: of the n real rows: labels int32 `[n]`, or multi-hot `[n, c]`.
        keys: of the real rows.
        shown: the real rows for people: pictures uint8 `[h, w, 3]`, or texts.
    """

    arrays: dict[str, np.ndarray]
    mask: np.ndarray
    targets: np.ndarray
    keys: list[str]
    shown: Callable[[], Sequence[np.ndarray | str]]


class Reader(Protocol):
    """Samples in batches: a context manager and an iterator of `Rows`."""

    @property
    def faults(self) -> dict[str, int]:
        """How many samples could not be used, by reason."""
        ...

    @property
    def unusable(self) -> tuple[str, ...]:
        """The latest of those, in words."""
        ...

    def cursor(self) -> dict[str, Any]:
        """The position after the batch that came last, as JSON values."""
        ...

    def seek(self, cursor: dict[str, Any]) -> None:
        """Continue from a cursor."""
        ...

    def __iter__(self) -> Iterator[Rows]: ...

    def __enter__(self) -> Reader: ...

    def __exit__(self, *exception: object) -> None: ...


class Labelled(Protocol):
    """The samples of one part of a task."""

    @property
    def classnames(self) -> tuple[str, ...]:
        """In label order."""
        ...

    @property
    def where(self) -> str:
        """Where they are, for people."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether one may have several labels."""
        ...

    def identity(self) -> dict[str, Any] | None:
        """What their features depend on, their contents' digest included; `None` where that is not known."""
        ...

    def read(self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None) -> Reader:
        """Read them.

        Args:
            config: of the tower that they are prepared for.
            batch_size: of each batch.
            seed: of an order that goes on for ever; `None`: each once, as they are stored.
            image_size: of pictures, where another is wanted than the tower's.
        """
        ...


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
    """Labelled pictures.

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

    @property
    def where(self) -> str:
        """Where they are, for people."""
        return ", ".join(self.source.patterns)

    def identity(self) -> dict[str, Any] | None:
        """What features of them depend on; `None` of samples in a bucket, which would have to be read for it."""
        paths = list_source(self.source)
        if any("://" in path for path in paths):
            return None
        about = {"split": self.split and self.split.identity, "multi_label": self.multi_label}
        source = {**dataclasses.asdict(self.source), "shards": [os.path.basename(path) for path in paths]}
        return {**about, "source": source, "contents": contents_digest(paths)}

    def read(
        self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None
    ) -> PictureReader:
        """Read them, as `Labelled` describes it."""
        source, transform = self.source, self.split
        if self.multi_label:
            labels = AllLabels(source.label_key)
            source = dataclasses.replace(source, label_key=None)  # several labels are no integer
            transform = labels if transform is None else Both(transform, labels)
        options: dict[str, Any] = {"shuffle": False, "num_epochs": 1}
        if seed is not None:
            options = {"shuffle": True, "num_epochs": None, "seed": seed}
        if image_size is not None:
            options["image_size"] = image_size
        data = data_config(config, (source,), **{"tokenizer": None, "transform": transform, **options})
        return PictureReader(Pipeline(data, global_batch_size=batch_size), self)

    def targets(self, batch: Batch) -> np.ndarray:
        """Of the real rows: labels int32 `[n]`, or multi-hot `[n, c]`.

        Raises:
            ValueError: a sample has no label, or one that is no class.
        """
        return (targets_of if self.multi_label else labels_of)(batch, len(self.classnames))


class PictureReader:
    """Labelled pictures in batches.

    Args:
        pipeline: that reads them.
        samples: that know their labels.
    """

    def __init__(self, pipeline: Pipeline, samples: Samples) -> None:
        self._pipeline = pipeline
        self._samples = samples
        self.cursor, self.seek = pipeline.cursor, pipeline.seek

    @property
    def faults(self) -> dict[str, int]:
        """How many pictures could not be used, by reason."""
        return dict(self._pipeline.faults)

    @property
    def unusable(self) -> tuple[str, ...]:
        """The latest of those, in words."""
        return tuple(str(fault) for fault in self._pipeline.recent_faults)

    def __iter__(self) -> Iterator[Rows]:
        for batch in self._pipeline:
            if batch.mask.any():
                keys = [batch.key[i] for i in np.flatnonzero(batch.mask)]
                shown = functools.partial(pictures_of, batch)
                yield Rows(image_arrays(batch), batch.mask, self._samples.targets(batch), keys, shown)

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipeline.close()


def no_sample(samples: Labelled) -> ValueError:
    """The error of a part of a split that holds nothing."""
    return ValueError(f"no sample of {samples.where} is in this part of the split; give more, or a larger share")


def contents_digest(paths: Sequence[str]) -> str:
    """A digest of local files, and of all files below folders, their names included."""
    digest = hashlib.blake2b(digest_size=16)
    for path in map(Path, paths):
        for file in sorted(_files(path)) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def check_classes(source: SourceConfig, classnames: tuple[str, ...], others: Sequence[SourceConfig] = ()) -> None:
    """Refuse a task that is none: fewer than two classes, a class folder without a picture, folders of other classes.

    Args:
        source: of the training samples.
        classnames: in label order.
        others: of validation and test samples.

    Raises:
        ValueError: naming the classes.
    """
    if len(classnames) < 2:
        raise ValueError(f"a classifier needs at least two classes; got {', '.join(classnames) or 'none'}")
    first: list[str] | None = None
    for one in (source, *others):
        if one.format != "class_folder":
            continue
        root = Path(one.patterns[0])
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        names = [path.name for path in folders]
        if empty := [path.name for path in folders if not any(_files(path))]:
            raise ValueError(f"every class folder holds pictures; these are empty: {', '.join(empty)}")
        if len(names) != len(classnames):
            raise ValueError(
                f"{root} has {len(names)} class folders ({_some(names)}), and there are {len(classnames)} class names "
                f"({_some(classnames)}): give one name for each folder, in the order of their names"
            )
        first = first or names
        if names != first:
            differ = sorted(set(names) ^ set(first))
            raise ValueError(f"class folders have the same names everywhere; {root} differs in {_some(differ)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
