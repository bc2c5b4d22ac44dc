"""A batch in the making: whoever decodes puts rows into it, and the last of them completes it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from clip_data.batch import Batch
from clip_data.buffers import EMBEDDING
from clip_data.faults import Fault
from clip_data.preparer import Sample
from clip_data.text import Tokenizer

__all__ = ["Job"]


class Job:
    """A batch being prepared.

    Args:
        positions: Of this process's samples, row by row; those beyond stay empty.
        num_rows: Of this process.
        arrays: As ``Layout`` names them, which are written to elsewhere.
        tokenizer: For the captions, if any.
    """

    def __init__(
        self,
        positions: Sequence[int],
        num_rows: int,
        arrays: Mapping[str, np.ndarray],
        tokenizer: Tokenizer | None,
    ):
        self.arrays = arrays
        self.num_real = len(positions)
        self.positions: list[int | None] = [*positions, *[None] * (num_rows - len(positions))]
        self.future: Future[Batch] = Future()
        self.faults: list[list[Fault]] = [[] for _ in range(num_rows)]
        self.dropped = False
        self._tokenizer = tokenizer
        self.samples: list[Sample | None] = [None] * num_rows
        self._rows_left = num_rows
        self._lock = threading.Lock()

    def put(self, first: int, samples: Sequence[Sample | None], faults: Sequence[list[Fault]]) -> None:
        """Takes rows whose pixels are in place; the last ones complete the batch.

        Args:
            first: Number of the first row.
            samples: Of the rows, None for those that hold none.
            faults: Of each row.
        """
        last = first + len(samples)
        self.samples[first:last], self.faults[first:last] = samples, faults
        with self._lock:
            self._rows_left -= len(samples)
            if self._rows_left or self.dropped:
                return
        try:
            self.future.set_result(self._complete())
        except BaseException as error:  # handed to the caller's thread, whatever it is
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Gives the batch up for an error, which comes out of ``future``."""
        with self._lock:
            self.dropped = True
            if not self.future.done():
                self.future.set_exception(error)

    def drop(self) -> None:
        """Gives the batch up: whoever waits for it is told, and those at work on it go on to other work."""
        self.dropped = True
        self.future.cancel()

    def _complete(self) -> Batch:
        samples = self.samples
        captions = [sample.caption if sample else "" for sample in samples]
        labels = [sample.label if sample else None for sample in samples]
        input_ids = attention_mask = None
        if self._tokenizer is not None:
            input_ids, attention_mask = self._tokenizer(captions)
        names = [name for name in self.arrays if name.startswith(EMBEDDING)]
        return Batch(
            **{"image": None} | {name: array for name, array in self.arrays.items() if name not in names},
            embeddings={name.removeprefix(EMBEDDING): self.arrays[name] for name in names},
            input_ids=input_ids,
            attention_mask=attention_mask,
            mask=np.array([sample is not None for sample in samples]),
            image_ids=np.array([sample.image_id if sample else -1 for sample in samples], np.int32),
            text_ids=np.array([sample.text_id if sample else -1 for sample in samples], np.int32),
            label=_labels(labels),
            key=[sample.key if sample else "" for sample in samples],
            caption=captions,
        )


def _labels(labels: list[int | None]) -> np.ndarray | None:
    if all(label is None for label in labels):
        return None
    return np.array([-1 if label is None else label for label in labels], np.int32)
