"""Labelled texts: read whole, as they are small, from tables and shards whose pictures, if any, are left alone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_data import SourceConfig, Tokenizer
from clip_data.fields import CAPTION_KEYS, LABEL_KEYS
from clip_data.records import IndexedShard, list_source
from clip_data.sources import open_shard
from clip_finetune.samples import Rows
from clip_finetune.split import Split
from clip_models import ClipConfig
from clip_train.evaluate.targets import multi_hot
from clip_train.inputs import data_config

_TABLES = {"csv": ",", "tsv": "\t"}


class Text(NamedTuple):
    """One text.

    Attributes:
        text: itself.
        label: a class, by number or name; or a list of such.
        shard: where it came from.
        row: its number there.
    """

    text: str
    label: Any
    shard: str
    row: int


def read_texts(source: SourceConfig, *, labelled: bool = True) -> list[Text]:
    """Reads the texts of a source, with their labels.

    Args:
        source: `caption_key` names the text's field, by default the first of caption, txt and text; `label_key` the
            label's, by default cls or label.
        labelled: whether each must have a label.

    Raises:
        ValueError: there is no such field, or a format without texts.
        OSError: it cannot be read.
    """
    if source.format in ("folder", "class_folder"):
        raise ValueError(f"texts are in tables or shards, not in a {source.format}: give csv, tsv, parquet or shards")
    wanted = source.caption_key
    keys = CAPTION_KEYS if wanted == "auto" else (wanted,) if isinstance(wanted, str) else tuple(wanted)
    labels = LABEL_KEYS if source.label_key is None else (source.label_key,)
    texts: list[Text] = []
    for path in list_source(source):
        for row, fields in enumerate(_rows(source, path)):
            key = next((name for name in keys if fields.get(name)), None)
            label = next((fields[name] for name in labels if fields.get(name) is not None), None)
            if label is None and labelled:
                raise ValueError(
                    f"no label in {' or '.join(labels)} of row {row} of {path}, whose fields are {', '.join(fields)}; "
                    "name its field as label_key"
                )
            if key is not None:
                texts.append(Text(_decoded(fields[key]), None if label is None else _plain(label), path, row))
        if not texts:
            raise ValueError(f"no text in {' or '.join(keys)} of {path}; name its field as caption_key")
    return texts


def names_of(texts: Sequence[Text]) -> tuple[str, ...]:
    """The class names that labels are, in alphabetical order; none where labels are numbers."""
    found = {name for text in texts for name in _list(text.label) if isinstance(name, str)}
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
        tokenizer = Tokenizer.of(data_config(config))
        if tokenizer is None:
            raise ValueError("texts need a tokenizer, and the model names none; set preprocess.tokenizer in its config")
        ids, mask = tokenizer([text.text for text in self.texts])
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

        labels = [[of(label) for label in _list(text.label)] for text in self.texts]
        if self.multi_label:
            return multi_hot(labels, len(self.classnames))
        if several := next((row for row, found in enumerate(labels) if len(found) != 1), None):
            raise ValueError(f"{self.texts[several].text!r:.60} has {len(labels[several])} labels; set multi_label")
        return np.array([row[0] for row in labels], np.int32)


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


def _rows(source: SourceConfig, path: str) -> Iterator[dict[str, Any]]:
    if source.format not in (*_TABLES, "parquet"):
        yield from IndexedShard(source, path).fields()
        return
    import pyarrow as pa

    shard = open_shard(path)
    data = io.BytesIO(shard.read_at(0, shard.size))
    try:
        if source.format == "parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(data)
        else:
            import pyarrow.csv as pacsv

            options = pacsv.ParseOptions(delimiter=_TABLES[source.format], newlines_in_values=True)
            table = pacsv.read_csv(data, parse_options=options)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{os.path.basename(path)} is no {source.format} file: {str(error).splitlines()[0]}"
        ) from error
    yield from table.to_pylist()


def _decoded(value: Any) -> str:
    if isinstance(value, list):
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _plain(label: Any) -> Any:
    """A label as int or str, or a list of these."""
    if isinstance(label, list | tuple | np.ndarray):
        return [_plain(one) for one in label]
    if isinstance(label, str | bytes):
        text = _decoded(label).strip()
        return int(text) if text.isdigit() else text
    try:
        return operator.index(label)
    except TypeError:
        raise ValueError(f"a label is a whole number, a name, or a list of these; got {label!r:.60}") from None


def _list(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]
