"""What an evaluation needs of a record besides its picture: all its captions, or all its labels.

A batch holds one text for each record; these transforms of records make it the JSON of a list.
"""

from __future__ import annotations

import dataclasses
import io
import json
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_data import Record, SourceConfig
from clip_data.fields import CAPTION_KEYS, LABEL_KEYS


@dataclasses.dataclass(frozen=True)
class AllCaptions:
    """A transform of records: all captions of one, in place of the one that is drawn; one without any is left out.

    Attributes:
        source: says which fields they are. Those of a WebDataset are lines, as CLIP_benchmark writes them; blank ones,
            which it takes for texts, are left out.
    """

    source: SourceConfig

    @property
    def identity(self) -> str:
        """What a cursor knows it by."""
        return f"all captions in {self.source.caption_key}"

    def __call__(self, record: Record) -> Record | None:
        """The record with a JSON list in place of its caption."""
        keys, fields = self.source.caption_key, record.metadata
        if keys == "auto":
            named = [name for name in CAPTION_KEYS if _texts(fields.get(name))][:1]
        else:
            named = [keys] if isinstance(keys, str) else list(keys)
        captions = [text for name in named for text in _texts(fields.get(name))] or _texts(record.caption)
        if self.source.format == "webdataset":
            captions = [line for text in captions for line in text.splitlines()]
        captions = [text.strip() for text in captions if text.strip()]
        return dataclasses.replace(record, caption=json.dumps(captions)) if captions else None


@dataclasses.dataclass(frozen=True)
class AllLabels:
    """A transform of records: all labels of one, in place of its caption.

    Attributes:
        label_key: the field that holds a list of classes, a multi-hot vector in NumPy's format, or one class; `None`
            takes `npy`, as CLIP_benchmark writes it, then `cls` or `label`.
    """

    label_key: str | None = None

    @property
    def identity(self) -> str:
        """What a cursor knows it by."""
        return f"all labels in {self.label_key}"

    def __call__(self, record: Record) -> Record:
        """The record with a JSON list of classes in place of its caption.

        Raises:
            ValueError: it has no labels.
        """
        names = ("npy", *LABEL_KEYS) if self.label_key is None else (self.label_key,)
        name = next((name for name in names if record.metadata.get(name) is not None), None)
        if name is None:
            raise ValueError(
                f"several labels are in {' or '.join(names)}; sample {record.key} of {record.shard} has none"
            )
        return dataclasses.replace(record, caption=json.dumps(_classes(record.metadata[name])))


def lists(captions: list[str], mask: np.ndarray) -> list[list[Any]]:
    """The lists that the real rows of a batch carry in place of captions."""
    return [json.loads(caption) for caption, real in zip(captions, mask, strict=True) if real]


def multi_hot(classes: list[list[int]], num_classes: int) -> np.ndarray:
    """Lists of classes as int32 `[n, c]`.

    Raises:
        ValueError: one is no class.
    """
    targets = np.zeros((len(classes), num_classes), np.int32)
    for row, labels in zip(targets, classes, strict=True):
        if labels and not 0 <= min(labels) <= max(labels) < num_classes:
            raise ValueError(f"labels go from 0 to {num_classes - 1} for {num_classes} class names; got {labels}")
        row[labels] = 1
    return targets


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _classes(value: Any) -> list[int]:
    if isinstance(value, bytes) and value[:6] == b"\x93NUMPY":
        return np.flatnonzero(np.load(io.BytesIO(value), allow_pickle=False)).tolist()
    if isinstance(value, Mapping) or not isinstance(value, list | tuple | np.ndarray):
        value = [int(value) if isinstance(value, str | bytes) else value]
    return [operator.index(item) for item in value]
