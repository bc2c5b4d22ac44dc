"""What an evaluation finds, as values: nothing here measures or draws."""

from __future__ import annotations

import dataclasses

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
        classnames: for classification.
        confusion: int `[c, c]`, rows the true class; for classification.
        examples: for retrieval.
    """

    name: str
    task: str
    num_samples: int
    metrics: dict[str, float]
    classnames: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    examples: tuple[Example, ...] = ()
