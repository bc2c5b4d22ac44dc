"""Records to a resumable iterator of batches.

``order`` decides which record is sample number n of the run; threads read, decode and tokenise a few batches ahead; the
position belongs to the batch that was delivered last.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from clip_data.batch import Batch
from clip_data.config import DataConfig, SourceConfig
from clip_data.cursor import check_cursor, identity
from clip_data.executor import Executor, ThreadExecutor
from clip_data.faults import DataError, Fault, FaultLog
from clip_data.job import Job
from clip_data.keys import KeyLog
from clip_data.order import Order
from clip_data.preparer import Preparer, Sample
from clip_data.processes import ProcessExecutor
from clip_data.records import IndexedShard, list_sources
from clip_data.schedule import BatchShape, Schedule
from clip_data.sources import expected_count
from clip_data.text import Tokenizer
from clip_data.workers import Workers

__all__ = ["Pipeline"]


class Pipeline:
    """An iterator of batches that can continue from any of them.

    With ``shuffle=False`` and a number of epochs it evaluates: sources one after the other, every sample once an epoch;
    the last batch is filled up with rows that ``mask`` rules out, and so is the place of a sample that cannot be used.

    Otherwise it trains: sources mixed by weight, every batch full, running on across the ends of epochs; of a finite
    number of epochs the remainder that makes no full batch is left out. A sample that cannot be used is replaced by one
    drawn from its block.

    Which samples a batch holds does not depend on the number of processes or threads: with n rows for each process,
    process i gets rows i·n to (i+1)·n of a global batch. All processes see the same number of batches. Where the
    processes divide ``num_streams``, and that divides the batch, no two of them read the same shard at a time.

    Args:
        config: What to read and how to prepare it.
        global_batch_size: Samples of a batch over all processes; with several ``max_patches``, of one of the longest
            sequences, whose patches are the budget of every batch.
        process_index: This process's number, from 0.
        process_count: Number of processes.

    Raises:
        FileNotFoundError: Some pattern of the sources names no shard.
        ValueError: The batch does not divide over the processes, a source holds no record, or the tokenizer cannot be
            opened.
        DataError: From iteration, where too many samples cannot be used.
    """

    def __init__(self, config: DataConfig, *, global_batch_size: int, process_index: int = 0, process_count: int = 1):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must lie in [0, {process_count}), not be {process_index}")
        if global_batch_size < 1 or global_batch_size % process_count:
            raise ValueError(
                f"global_batch_size must divide over {process_count} processes; {global_batch_size} does not"
            )
        self._schedule = Schedule.of(config, global_batch_size)
        for num_rows, max_patches in self._schedule.shapes:
            if num_rows % process_count:
                raise ValueError(
                    f"batches of {num_rows} sequences of {max_patches} patches must divide over {process_count} "
                    f"processes: give num_streams a multiple of them, not {config.num_streams}"
                )
        if config.padding == "longest" and process_count > 1:
            raise ValueError("padding must be max_length with several processes, whose batches would differ in width")
        self.config = config
        self._global_batch_size = global_batch_size
        self._process_index, self._process_count = process_index, process_count
        self._paths = list_sources(config.sources)
        self._log = FaultLog(max_bad_fraction=config.max_bad_fraction)
        self._keys = KeyLog()
        self._workers = Workers(config.num_threads or _num_cores())
        self._ends = [weakref.finalize(self, self._workers.stop)]
        self._position: int = 0
        self._found_any: bool = False
        self._number: int = 0
        self._next_start: int = 0
        self._next_number: int = 0
        self._jobs: deque[tuple[Job, int]] = deque()  # with the position after each
        try:
            counts = self._count()
            self._order = Order.of(config, counts)
            self.num_samples: int = self._order.num_samples
            self._identity = identity(config, self._paths, counts)
            self._executor: Executor = self._make_executor(counts)
            self._ends.append(weakref.finalize(self, self._executor.close))
        except BaseException:
            self.close()
            raise

    @property
    def shards(self) -> list[str]:
        """Paths of all shards, source by source."""
        return [path for paths in self._paths for path in paths]

    @property
    def num_batches(self) -> int | None:
        """Batches from the start to the end, or None if there is no end."""
        if self.config.num_epochs is None:
            return None
        total = self.num_samples * self.config.num_epochs
        return -(-total // self._global_batch_size) if self.config.evaluates else self._schedule.num_batches(total)

    @property
    def faults(self) -> dict[str, int]:
        """Number of faults by reason, in what was delivered to this process so far."""
        return self._log.counts

    @property
    def skipped(self) -> dict[str, int]:
        """Number of records that were not wanted, by reason, in what was delivered to this process so far."""
        return self._log.skipped

    @property
    def recent_faults(self) -> list[Fault]:
        """The latest faults, a hundred at most, with their places."""
        return list(self._log.recent)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ends[0].alive:
            raise ValueError("the pipeline is closed; make a new one")
        self._fill()
        if not self._jobs:
            self._refuse_nothing()
            raise StopIteration
        job, end = self._jobs[0]
        batch = self._executor.deliver(job.future.result())
        self._jobs.popleft()
        self._position, self._number = end, self._number + 1
        faults = [fault for row in job.faults for fault in row]
        num_samples = job.num_real + (0 if self.config.evaluates else sum(fault.lost for fault in faults))
        faults += self._same_keys(job.samples)
        del job  # its memory may be needed for the next one
        self._found_any |= bool(batch.mask.any())
        self._fill()
        self._log.add(faults, num_samples=num_samples)
        return batch

    def cursor(self) -> dict[str, Any]:
        """Returns where the run stands after the batch delivered last, as JSON values of less than 4 KB.

        The position counts samples over all processes: it is the same in each, and serves any number of them and any
        batch size. Where batches differ in size, so does the number of the next one.
        """
        number = {"batch": self._number} if len(self._schedule.shapes) > 1 else {}
        return {"position": self._position, **number, **self._identity}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Continues from a cursor.

        Args:
            cursor: From ``cursor()`` of a pipeline over the same data and with the same seed.

        Raises:
            ValueError: The cursor belongs to other data or another order; the message says what differs.
        """
        position, number = check_cursor(cursor, self._identity)
        self._go_to(position, number)

    def rewind(self) -> None:
        """Starts again from the first batch."""
        self._go_to(0, 0)

    def close(self) -> None:
        """Ends threads and processes; a thread that hangs in a read is left behind. Nothing is yielded after it."""
        self._drop_jobs()
        for end in self._ends:
            end()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self) -> list[list[int]]:
        """Counts the records of every shard."""

        def count(item: tuple[SourceConfig, str]) -> tuple[int, Fault | None]:
            source, path = item
            expected = expected_count(path, "count" if source.format == "parquet" else "successes")
            if expected is not None:
                return expected, None
            shard = IndexedShard(source, path, images=self.config.has_images)
            return len(shard), shard.fault

        counts = []
        for source, paths in zip(self.config.sources, self._paths, strict=True):
            results = self._workers.map(count, [(source, path) for path in paths])
            faults = [fault for _, fault in results if fault]
            self._log.add(faults, num_samples=0)
            counts.append([number for number, _ in results])
            if not any(counts[-1]):
                reason = f": {faults[0]}" if faults else ""
                raise ValueError(f"no record in {source.shards} as format {source.format!r}{reason}")
        return counts

    def _same_keys(self, samples: Sequence[Sample | None]) -> Iterator[Fault]:
        for sample in samples:
            if sample is not None:
                source, shard, row = sample.place
                fault = self._keys.add(sample.key, self._paths[source][shard], row)
                if fault is not None:
                    yield fault

    def _go_to(self, position: int, number: int) -> None:
        self._drop_jobs()
        self._position = self._next_start = position
        self._number = self._next_number = number

    def _refuse_nothing(self) -> None:
        """Raises where an evaluation by one process held no wanted record at all; several share what there is."""
        if not self._found_any and self.skipped and self._process_count == 1:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
            raise DataError(
                f"none of {self.num_samples} samples is wanted ({counts}); check the filters and their columns"
            )

    def _fill(self) -> None:
        total = None if self.config.num_epochs is None else self.num_samples * self.config.num_epochs
        while len(self._jobs) < self.config.prefetch:
            start, shape = self._next_start, self._schedule(self._next_number)
            last = start if self.config.evaluates else start + shape.num_rows - 1
            if total is not None and last >= total:
                return
            size = shape.num_rows if total is None else min(shape.num_rows, total - start)
            own = self._own(shape)
            first = self._process_index * own.num_rows
            positions = self._order.rows(start, size)[first : first + own.num_rows]
            self._next_start, self._next_number = start + shape.num_rows, self._next_number + 1
            self._jobs.append((self._executor.start(own, positions), self._next_start))

    def _make_executor(self, counts: list[list[int]]) -> Executor:
        config, tokenizer = self.config, Tokenizer.of(self.config)
        num_threads = config.num_threads or _num_cores()
        shapes = list(map(self._own, self._schedule.shapes))
        if config.num_workers and config.executor != "tensorflow":
            return ProcessExecutor(config, self._paths, counts, shapes, num_threads, tokenizer)
        preparer = Preparer(config, self._paths, self._order)
        if config.executor == "tensorflow":
            from clip_data.tfdata import TensorflowExecutor

            return TensorflowExecutor(preparer, self._order, self._workers, shapes[0], num_threads, tokenizer)
        return ThreadExecutor(preparer, self._workers, shapes, tokenizer)

    def _own(self, shape: BatchShape) -> BatchShape:
        """Returns the shape of this process's part of a batch."""
        return shape._replace(num_rows=shape.num_rows // self._process_count)

    def _drop_jobs(self) -> None:
        for job, _ in self._jobs:
            job.drop()
        self._jobs.clear()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
