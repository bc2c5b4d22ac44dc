"""What an evaluation finds, as values: nothing here measures or draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """One held-out picture and the texts that the model finds most like it.

    Attributes:
        image: uint8 `[h, w, 3]`.
        caption: its own.
        matches: `(text, cosine similarity, is it right)`, best first.
    """

    image: np.ndarray
    caption: str
    matches: tuple[tuple[str, float, bool], ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one evaluation found.

    Attributes:
        name: the evaluation's.
        task: likewise.
        num_samples: how many were evaluated, each once.
        metrics: by CLIP_benchmark's names.
        settings: what it puts beside the metrics, such as a probe's weight decay.
        classnames: for classification.
        confusion: int `[c, c]`, rows the true class; for classification with one label.
        examples: for retrieval.
    """

    name: str
    task: str
    num_samples: int
    metrics: dict[str, float]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    classnames: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    examples: tuple[Example, ...] = ()

    def to_json(self, *, model: str, pretrained: str) -> dict[str, Any]:
        """The result in CLIP_benchmark's form.

        Args:
            model: the architecture, in a word.
            pretrained: where its weights are from.
        """
        return {
            "dataset": self.name,
            "model": model,
            "pretrained": pretrained,
            "task": self.task,
            "metrics": {**self.metrics, **self.settings},
            "language": "en",
            "num_samples": self.num_samples,
        }
