"""Who decodes: what the pipeline asks of it, and the threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clip_data.batch import Batch
from clip_data.buffers import Buffers, Layout
from clip_data.faults import Fault
from clip_data.job import Job
from clip_data.preparer import Preparer, Sample
from clip_data.schedule import BatchShape
from clip_data.text import Tokenizer
from clip_data.workers import Workers

__all__ = ["ROWS_PER_TASK", "Executor", "ThreadExecutor"]

ROWS_PER_TASK = 16


class Executor(Protocol):
    """Prepares batches, several at a time."""

    def start(self, shape: BatchShape, positions: Sequence[int]) -> Job:
        """Begins a batch, whose ``future`` it will resolve.

        Args:
            shape: Of this process's part of it.
            positions: Of its samples, row by row; no more than it has rows.
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
        shapes: That batches may have.
        tokenizer: For the captions, if any.
    """

    def __init__(self, preparer: Preparer, workers: Workers, shapes: Sequence[BatchShape], tokenizer: Tokenizer | None):
        self._preparer, self._workers, self._tokenizer = preparer, workers, tokenizer
        self._layouts = {shape: Layout.of(preparer.config, shape) for shape in shapes}
        size = max(layout.size for layout in self._layouts.values())
        self._buffers = Buffers(size, num_kept=preparer.config.prefetch + 2)

    def start(self, shape: BatchShape, positions: Sequence[int]) -> Job:
        """Begins a batch."""
        self._preparer.look_ahead(positions)
        arrays = self._layouts[shape].views(self._buffers.take())
        job = Job(positions, shape.num_rows, arrays, self._tokenizer)
        for first in range(0, shape.num_rows, ROWS_PER_TASK):
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
            for row in range(first, min(first + ROWS_PER_TASK, len(job.positions))):
                if job.dropped:
                    return
                faults.append([])
                samples.append(self._preparer(job.positions[row], job.arrays, row, faults[-1]))
        except BaseException as error:  # handed to the caller's thread, whatever it is
            job.fail(error)
        else:
            job.put(first, samples, faults)
