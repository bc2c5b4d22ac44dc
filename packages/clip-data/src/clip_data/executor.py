"""Who decodes: what the pipeline asks of it, and the threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clip_data.batch import Batch
from clip_data.buffers import Buffers, Layout
from clip_data.faults import Fault
from clip_data.job import Job
from clip_data.preparer import Preparer, Sample
from clip_data.text import Tokenizer
from clip_data.workers import Workers

__all__ = ["ROWS_PER_TASK", "Executor", "ThreadExecutor"]

ROWS_PER_TASK = 16


class Executor(Protocol):
    """Prepares batches, several at a time."""

    def start(self, start: int, positions: Sequence[int]) -> Job:
        """Begins a batch, whose ``future`` it will resolve.

        Args:
            start: Position of the global batch's first sample.
            positions: Of this process's samples, row by row.
        """
        ...

    def deliver(self, batch: Batch) -> Batch:
        """Returns a batch that may be held for as long as its user wants."""
        ...

    def close(self) -> None:
        """Ends what it started; does not wait for a read that hangs."""
        ...


class ThreadExecutor:
    """Prepares batches in threads of this process.

    Args:
        preparer: Of the samples.
        workers: Whose end is not this one's to say.
        num_rows: Of a batch.
        tokenizer: For the captions, if any.
    """

    def __init__(self, preparer: Preparer, workers: Workers, num_rows: int, tokenizer: Tokenizer | None):
        self._preparer, self._workers, self._num_rows, self._tokenizer = preparer, workers, num_rows, tokenizer
        self._layout = Layout.of(preparer.config, num_rows)
        self._buffers = Buffers(self._layout.size, num_kept=preparer.config.prefetch + 2)

    def start(self, start: int, positions: Sequence[int]) -> Job:
        """Begins a batch."""
        self._preparer.look_ahead(positions)
        arrays = self._layout.views(self._buffers.take())
        job = Job(start, positions, self._num_rows, arrays, self._tokenizer)
        for first in range(0, self._num_rows, ROWS_PER_TASK):
            self._workers.submit(lambda first=first: self._run(job, first))
        return job

    def deliver(self, batch: Batch) -> Batch:
        """Returns the batch: its memory is not used again before it is gone."""
        return batch

    def close(self) -> None:
        """Does nothing: the threads are the pipeline's."""

    def _run(self, job: Job, first: int) -> None:
        samples: list[Sample | None] = []
        faults: list[list[Fault]] = []
        try:
            for row in range(first, min(first + ROWS_PER_TASK, self._num_rows)):
                if job.dropped:
                    return
                faults.append([])
                samples.append(self._preparer(job.positions[row], job.arrays, row, faults[-1]))
        except BaseException as error:  # handed to the caller's thread, whatever it is
            job.fail(error)
        else:
            job.put(first, samples, faults)
