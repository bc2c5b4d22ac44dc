"""Labelled pictures: read as they are needed, from shards or class folders."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_data import Batch, Pipeline, Record, SourceConfig
from clip_data.records import list_source
from clip_finetune.files import contents_digest
from clip_finetune.samples import Rows
from clip_finetune.split import Split
from clip_models import ClipConfig
from clip_train.evaluate import AllLabels, labels_of, targets_of
from clip_train.inputs import data_config, image_arrays, pictures_of


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
class Pictures:
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

    def __init__(self, pipeline: Pipeline, samples: Pictures) -> None:
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
