"""The labelled samples of a task, of whatever kind: what a reader of them promises. Pictures and texts are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from clip_models import ClipConfig

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


class Samples(Protocol):
    """What can be read in batches."""

    def read(self, config: ClipConfig, *, batch_size: int, seed: int | None = None, image_size: Any = None) -> Reader:
        """Read them.

        Args:
            config: of the tower that they are prepared for.
            batch_size: of each batch.
            seed: of an order that goes on for ever; `None`: each once, as they are stored.
            image_size: of pictures, where another is wanted than the tower's.
        """
        ...


class Identified(Samples, Protocol):
    """Samples whose features can be kept, and found again."""

    @property
    def where(self) -> str:
        """Where they are, for people."""
        ...

    def identity(self) -> dict[str, Any] | None:
        """What their features depend on, their contents' digest included; `None` where that is not known."""
        ...


class Labelled(Identified, Protocol):
    """The samples of one part of a task."""

    @property
    def classnames(self) -> tuple[str, ...]:
        """In label order."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether one may have several labels."""
        ...


def no_sample(samples: Identified) -> ValueError:
    """The error of a part of a split that holds nothing."""
    return ValueError(f"no sample of {samples.where} is in this part of the split; give more, or a larger share")
