"""Labelled texts in batches; they are held whole, as they are small."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_data import Tokenizer
from clip_finetune.samples import Rows
from clip_finetune.split import Split
from clip_finetune.text_files import Text, labels_of
from clip_models import ClipConfig
from clip_train.evaluate.targets import multi_hot
from clip_train.inputs import data_config


def names_of(texts: Sequence[Text]) -> tuple[str, ...]:
    """The class names that labels are, in alphabetical order; none where labels are numbers."""
    found = {name for text in texts for name in labels_of(text.label) if isinstance(name, str)}
    return tuple(sorted(found))


@dataclasses.dataclass(frozen=True)
class Texts:
    """Labelled texts of one part of a task.

    Attributes:
        texts: of the part.
        classnames: in label order.
        where: where they are, for people.
        multi_label: whether one may have several labels.
    """

    texts: tuple[Text, ...]
    classnames: tuple[str, ...]
    where: str
    multi_label: bool = False

    @classmethod
    def of(
        cls,
        texts: Sequence[Text],
        classnames: tuple[str, ...],
        *,
        where: str,
        multi_label: bool = False,
        split: Split | None = None,
    ) -> Texts:
        """Those of `texts` that `split` keeps."""
        kept = tuple(text for text in texts if split is None or split.holds(text.shard, "", text.row))
        return cls(kept, classnames, where, multi_label)

    def identity(self) -> dict[str, Any]:
        """What features of them depend on."""
        contents = json.dumps([[text.text, text.label] for text in self.texts]).encode()
        return {
            "texts": hashlib.blake2b(contents, digest_size=16).hexdigest(),
            "classes": list(self.classnames),
            "multi_label": self.multi_label,
        }

    def read(
        self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None
    ) -> TextReader:
        """Read them, as `Labelled` describes it."""
        if not self.texts:
            raise ValueError(f"no text of {self.where} is in this part of the split; give more, or a larger share")
        ids, mask = tokenizer_of(config)([text.text for text in self.texts])
        arrays = {"input_ids": ids, "attention_mask": mask}
        return TextReader(arrays, self.targets(), [text.text for text in self.texts], batch_size=batch_size, seed=seed)

    def targets(self) -> np.ndarray:
        """Labels int32 `[n]`, or multi-hot `[n, c]`.

        Raises:
            ValueError: one is no class.
        """
        number = {name: i for i, name in enumerate(self.classnames)}

        def of(label: Any) -> int:
            if isinstance(label, str) and label in number:
                return number[label]
            if isinstance(label, str) or not 0 <= label < len(self.classnames):
                some = ", ".join(self.classnames[:8]) + (", …" if len(self.classnames) > 8 else "")
                raise ValueError(f"{label!r} is none of the {len(self.classnames)} classes ({some})")
            return label

        labels = [[of(label) for label in labels_of(text.label)] for text in self.texts]
        if self.multi_label:
            return multi_hot(labels, len(self.classnames))
        if several := next((row for row, found in enumerate(labels) if len(found) != 1), None):
            raise ValueError(f"{self.texts[several].text!r:.60} has {len(labels[several])} labels; set multi_label")
        return np.array([row[0] for row in labels], np.int32)


def tokenizer_of(config: ClipConfig) -> Tokenizer:
    """The tokenizer that a model names.

    Raises:
        ValueError: it names none.
    """
    tokenizer = Tokenizer.of(data_config(config))
    if tokenizer is None:
        raise ValueError("texts need a tokenizer, and the model names none; set preprocess.tokenizer in its config")
    return tokenizer


class TextReader:
    """Labelled texts in batches, as `Reader` describes it.

    Args:
        arrays: of all n texts.
        targets: likewise.
        texts: likewise.
        batch_size: of each batch.
        seed: of an order that goes on for ever; `None`: each once.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        targets: np.ndarray,
        texts: list[str],
        *,
        batch_size: int,
        seed: int | None = None,
    ) -> None:
        self._arrays, self._targets, self._texts = arrays, targets, texts
        self._batch_size, self._seed = batch_size, seed
        self._position = 0
        self.faults: dict[str, int] = {}
        self.unusable: tuple[str, ...] = ()

    def cursor(self) -> dict[str, Any]:
        """The position, and how many texts there are."""
        return {"position": self._position, "texts": len(self._texts)}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Continue from a cursor.

        Raises:
            ValueError: it is of other texts.
        """
        if cursor["texts"] != len(self._texts):
            raise ValueError(f"the checkpoint is of {cursor['texts']} texts, and there are {len(self._texts)}")
        self._position = cursor["position"]

    def __iter__(self) -> Iterator[Rows]:
        num = len(self._texts)
        while self._seed is not None or self._position < num:
            rows = np.arange(self._position, self._position + self._batch_size)
            self._position += self._batch_size
            real = np.ones(len(rows), bool) if self._seed is not None else rows < num
            index = self._drawn(rows) if self._seed is not None else np.minimum(rows, num - 1)
            arrays = {name: array[index] for name, array in self._arrays.items()}
            kept = index[real]
            shown = functools.partial(_chosen, self._texts, kept)
            yield Rows(arrays, real, self._targets[kept], [str(i) for i in kept], shown)

    def _drawn(self, rows: np.ndarray) -> np.ndarray:
        """Which texts are at positions of a training: each epoch is an order of its own."""
        num = len(self._texts)
        epochs = range(rows[0] // num, rows[-1] // num + 1)
        order = np.concatenate([np.random.default_rng([self._seed or 0, epoch]).permutation(num) for epoch in epochs])
        return order[rows - epochs[0] * num]

    def __enter__(self) -> TextReader:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _chosen(texts: list[str], index: np.ndarray) -> list[str]:
    return [texts[i] for i in index]
