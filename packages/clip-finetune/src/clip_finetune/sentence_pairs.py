"""Pairs of sentences that mean the same, or that are scored by how alike they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_data import SourceConfig
from clip_data.records import list_source
from clip_finetune.split import Split
from clip_finetune.text_files import decoded, fields_of, text_keys
from clip_finetune.texts import TextReader, tokenizer_of
from clip_models import ClipConfig


class SentencePair(NamedTuple):
    """Two sentences.

    Attributes:
        text: one.
        positive: the other.
        score: how alike they are; `None` where nobody said.
        shard: where they came from.
        row: their number there.
    """

    text: str
    positive: str
    score: float | None
    shard: str
    row: int


def read_sentence_pairs(
    source: SourceConfig, positive_key: str, score_key: str | None = None
) -> tuple[SentencePair, ...]:
    """Reads the pairs of a source; rows in which a sentence is missing or empty are left out.

    Args:
        source: `caption_key` names the field of one sentence, by default the first of caption, txt and text.
        positive_key: names the field of the other.
        score_key: names the field of a number, which every pair must then have.

    Raises:
        ValueError: there is no such field, or a score is no number.
        OSError: it cannot be read.
    """
    keys = text_keys(source)
    pairs: list[SentencePair] = []
    for path in list_source(source):
        for row, fields in enumerate(fields_of(source, path)):
            key = next((name for name in keys if fields.get(name)), None)
            if positive_key not in fields or (score_key is not None and score_key not in fields):
                missing = positive_key if positive_key not in fields else score_key
                raise ValueError(
                    f"no {missing} in row {row} of {path}, whose fields are {', '.join(fields)}; name the fields as "
                    "positive_key and score_key"
                )
            if key is None or not fields[positive_key]:
                continue
            score = None if score_key is None else _number(fields[score_key], path, row)
            pairs.append(SentencePair(decoded(fields[key]), decoded(fields[positive_key]), score, path, row))
    if not pairs:
        raise ValueError(f"no pair of {' or '.join(keys)} and {positive_key} in {', '.join(source.patterns)}")
    return tuple(pairs)


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """The pairs of one part of a task.

    Attributes:
        pairs: of the part.
        where: they are, for people.
    """

    pairs: tuple[SentencePair, ...]
    where: str

    @classmethod
    def of(cls, pairs: Sequence[SentencePair], *, where: str, split: Split | None = None) -> SentencePairs:
        """Those of `pairs` that `split` keeps.

        Raises:
            ValueError: none is.
        """
        kept = tuple(pair for pair in pairs if split is None or split.holds(pair.shard, "", pair.row))
        if not kept:
            raise ValueError(f"no pair of {where} is in this part of the split; give more, or a larger share")
        return cls(kept, where)

    def sentences(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """All sentences, each once, and which of them are the two of each pair: int32 `[n]` both."""
        number: dict[str, int] = {}
        ids = np.array(
            [[number.setdefault(text, len(number)) for text in (pair.text, pair.positive)] for pair in self.pairs],
            np.int32,
        )
        return list(number), ids[:, 0], ids[:, 1]

    def read(
        self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None
    ) -> TextReader:
        """Read the tokens of both sentences, and numbers that are equal where sentences are."""
        tokenizer = tokenizer_of(config)
        sentences, first, second = self.sentences()
        ids, mask = tokenizer(sentences)
        arrays = {
            "input_ids": ids[first],
            "attention_mask": mask[first],
            "positive_input_ids": ids[second],
            "positive_attention_mask": mask[second],
            "text_id": first,
            "positive_id": second,
        }
        shown = [pair.text for pair in self.pairs]
        return TextReader(arrays, np.zeros(len(first), np.int32), shown, batch_size=batch_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences without labels, as the cache of features reads them.

    Attributes:
        texts: the sentences.
        where: they are, for people.
    """

    texts: tuple[str, ...]
    where: str = "the sentences"

    def identity(self) -> dict[str, Any]:
        """What features of them depend on."""
        return {"sentences": hashlib.blake2b(json.dumps(self.texts).encode(), digest_size=16).hexdigest()}

    def read(
        self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None
    ) -> TextReader:
        """Read them, each once."""
        ids, mask = tokenizer_of(config)(list(self.texts))
        arrays = {"input_ids": ids, "attention_mask": mask}
        return TextReader(arrays, np.zeros(len(ids), np.int32), list(self.texts), batch_size=batch_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class FeaturePairs:
    """Pairs whose sentences a frozen tower has already read.

    Attributes:
        features: float32 `[n, f]`, of `sentences()`.
        pairs: the pairs.
    """

    features: np.ndarray
    pairs: SentencePairs

    def read(
        self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None
    ) -> TextReader:
        """Read the features of both, and numbers that are equal where sentences are."""
        _, first, second = self.pairs.sentences()
        arrays = {
            "features": self.features[first],
            "positive_features": self.features[second],
            "text_id": first,
            "positive_id": second,
        }
        shown = [pair.text for pair in self.pairs.pairs]
        return TextReader(arrays, np.zeros(len(first), np.int32), shown, batch_size=batch_size, seed=seed)


def _number(value: Any, path: str, row: int) -> float:
    try:
        return float(decoded(value))
    except ValueError:
        raise ValueError(f"a score is a number; got {value!r:.60} in row {row} of {path}") from None
