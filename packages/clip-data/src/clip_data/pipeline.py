"""Records to a resumable iterator of batches.

``order`` decides which record is sample number n of the run; threads read, decode and tokenise a few batches ahead; the
position belongs to the batch that was delivered last.
"""

from __future__ import annotations

import os
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

from clip_data.batch import Batch
from clip_data.census import Census, take_census
from clip_data.config import DataConfig
from clip_data.cursor import check_cursor, identity
from clip_data.executor import Executor, ThreadExecutor
from clip_data.fault_log import FaultLog, SumCounts, judged_over
from clip_data.faults import Fault
from clip_data.job import Job
from clip_data.keys import KeyLog
from clip_data.order import Order
from clip_data.preparer import Preparer
from clip_data.processes import ProcessExecutor
from clip_data.records import list_sources
from clip_data.schedule import BatchShape, Schedule
from clip_data.text import Tokenizer
from clip_data.workers import Workers

__all__ = ["Pipeline"]

_BATCHES_JUDGED = 64  # at a time, whose losses several processes add up


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
        sum_counts: With several processes: adds up lists of integers over them, place by place. With it they judge
            together whether too many samples are lost, stop at the same batch, and have one cursor. It is called after
            every 64th batch, where an epoch ends, and by ``cursor()``, which all then call after the same batch.

    Raises:
        FileNotFoundError: Some pattern of the sources names no shard.
        ValueError: The batch does not divide over the processes, a source holds no record, or the tokenizer cannot be
            opened.
        DataError: From iteration, where too many samples cannot be used. The position stays before that batch.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        global_batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        sum_counts: SumCounts | None = None,
    ):
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
        self._keys = KeyLog()
        self._workers = Workers(config.num_threads or _num_cores())
        self._ends = [weakref.finalize(self, self._workers.stop)]
        self._position: int = 0
        self._number: int = 0
        self._is_summed_up: bool = False
        self._next_start: int = 0
        self._next_number: int = 0
        self._jobs: deque[tuple[Job, int]] = deque()  # with the position after each
        try:
            census = take_census(config, self._paths, self._workers)
            self._order = Order.of(config, census.counts)
            self.num_samples: int = self._order.num_samples
            self._log = FaultLog(
                max_bad_fraction=config.max_bad_fraction,
                least=judged_over(census.counts),
                process_index=process_index,
                process_count=process_count,
                sum_counts=sum_counts,
            )
            self._log.start(census.faults)
            self._counts_at_start = self._log.save()
            self._identity = identity(config, self._paths, census.counts)
            self._executor: Executor = self._make_executor(census)
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
        """Number of faults by reason, since the start of the run.

        Each process counts those of its own samples, and the first one those that a cursor brought: their sum is the
        run's. A replacement that is bad itself counts at its own position.
        """
        return self._log.counts

    @property
    def skipped(self) -> dict[str, int]:
        """Number of records that were not wanted, by reason, counted likewise."""
        return self._log.skipped

    @property
    def last_epoch_faults(self) -> dict[str, int]:
        """Both of the last epoch that ended since this pipeline was opened, with ``sum_counts`` of all processes."""
        return dict(self._log.last_epoch)

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
            self._sum_up()
            raise StopIteration
        job, end = self._jobs[0]
        batch = self._executor.deliver(job.future.result())
        self._account(job, end)
        self._jobs.popleft()
        self._position, self._number = end, self._number + 1
        del job  # its memory may be needed for the next one
        self._fill()
        return batch

    def cursor(self) -> dict[str, Any]:
        """Returns where the run stands after the batch delivered last, as JSON values of less than 4 KB.

        The position counts samples over all processes: it is the same in each, and serves any number of them and any
        batch size. Where batches differ in size, so does the number of the next one. The counts of what was lost are
        those of all processes where they can be added up, by ``sum_counts``; else they are this one's.
        """
        number = {"batch": self._number} if len(self._schedule.shapes) > 1 else {}
        return {"position": self._position, **number, "counts": self._log.to_json(), **self._identity}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Continues from a cursor.

        Args:
            cursor: From ``cursor()`` of a pipeline over the same data and with the same seed.

        Raises:
            ValueError: The cursor belongs to other data or another order; the message says what differs.
        """
        standing = check_cursor(cursor, self._identity)
        self._go_to(standing.position, standing.number)
        self._log.from_json(standing.counts)

    def rewind(self) -> None:
        """Starts again from the first batch, and counts anew."""
        self._go_to(0, 0)
        self._log.restore(self._counts_at_start)

    def close(self) -> None:
        """Ends threads and processes; a thread that hangs in a read is left behind. Nothing is yielded after it."""
        self._drop_jobs()
        for end in self._ends:
            end()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _account(self, job: Job, end: int) -> None:
        """Counts what a batch lost, epoch by epoch.

        Args:
            job: The batch.
            end: Position after it.

        Raises:
            DataError: It is too much; nothing of the batch is counted then.
        """
        before, length = self._log.save(), self.num_samples
        by_epoch: defaultdict[int, list[int]] = defaultdict(list)
        for row in range(job.num_real):
            by_epoch[job.positions[row] // length].append(row)  # pyright: ignore[reportOptionalOperand]
        try:
            for epoch in range(self._position // length, (end - 1) // length + 1):
                rows = by_epoch[epoch]
                self._log.add(self._faults(job, rows), num_samples=len(rows))
                if end >= (epoch + 1) * length:
                    self._log.end_epoch(f"epoch {epoch + 1}")
            samples = _BATCHES_JUDGED * self._global_batch_size
            if self._position // samples < end // samples:
                self._log.judge()
        except BaseException:
            self._log.restore(before)
            raise

    def _faults(self, job: Job, rows: list[int]) -> list[Fault]:
        """Returns what is wrong with rows of a batch, and whose keys came before."""
        faults: list[Fault] = []
        for row in rows:
            sample, found = job.samples[row], job.faults[row]
            faults += found
            if sample is None or sample.key_is_path or any(fault.lost for fault in found):  # or a replacement
                continue
            source, shard, number = sample.place
            again = self._keys.add(sample.key, self._paths[source][shard], number)
            if again is not None:
                faults.append(again)
        return faults

    def _sum_up(self) -> None:
        """Judges the epoch that a training ends within."""
        if self._position % self.num_samples and not self._is_summed_up:
            self._log.end_epoch(f"epoch {self._position // self.num_samples + 1}", is_whole=False)
            self._is_summed_up = True

    def _go_to(self, position: int, number: int) -> None:
        self._drop_jobs()
        self._position = self._next_start = position
        self._number = self._next_number = number
        self._is_summed_up = False

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
            self._next_start, self._next_number = start + size, self._next_number + 1
            self._jobs.append((self._executor.start(own, positions), self._next_start))

    def _make_executor(self, census: Census) -> Executor:
        config, tokenizer = self.config, Tokenizer.of(self.config)
        num_threads = config.num_threads or _num_cores()
        shapes = list(map(self._own, self._schedule.shapes))
        if config.num_workers and config.executor != "tensorflow":
            return ProcessExecutor(config, self._paths, census, shapes, num_threads, tokenizer)
        preparer = Preparer(config, self._paths, self._order, census)
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
