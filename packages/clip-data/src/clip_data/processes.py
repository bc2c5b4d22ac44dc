"""Batches decoded by other processes, past what one process's interpreter lock allows.

The processes are fresh interpreters: no module of the caller's runs again in them, and nothing of jax or of a device is
inherited. They write pixels into memory that both sides see; the rest comes back over a socket. When this process ends,
however it ends, so do they.
"""

from __future__ import annotations

import dataclasses
import itertools
import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

from clip_data.batch import Batch
from clip_data.buffers import EMBEDDING, Layout, SharedMemory, slot_memory
from clip_data.census import Census
from clip_data.config import DataConfig
from clip_data.executor import ROWS_PER_TASK
from clip_data.faults import DataError, Fault
from clip_data.job import Job
from clip_data.order import Order
from clip_data.preparer import Preparer, Sample
from clip_data.schedule import BatchShape
from clip_data.text import Tokenizer
from clip_data.workers import Workers

__all__ = ["ProcessExecutor"]

_SPARE_SLOTS = 2  # batches that the user may hold before the next are copied
_POLL_SECONDS = 0.005
_COMMAND = "import sys; from clip_data.processes import work; work(int(sys.argv[1]), int(sys.argv[2]))"


class _Setting(NamedTuple):
    """What a worker is told at its start."""

    config: DataConfig
    paths: list[list[str]]
    census: Census
    shapes: list[BatchShape]
    num_threads: int


class _Rows(NamedTuple):
    """Rows for a worker: those of batch number ``job``, of a shape, in a slot of memory, from ``first`` on."""

    job: int
    shape: BatchShape
    slot: int
    first: int
    positions: list[int | None]


class _Done(NamedTuple):
    """What a worker answers: rows that are in place, or why they are not."""

    job: int
    first: int
    samples: list[Sample | None]
    faults: list[list[Fault]]
    error: tuple[bool, str] | None = None  # whether the data are to blame, and what happened


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection


class ProcessExecutor:
    """Prepares batches in processes of its own, each of which always gets the same part of their rows.

    Args:
        config: Of the pipeline; ``num_workers`` is at least 1.
        paths: For each source its shards.
        census: Of their records.
        shapes: That batches may have.
        num_threads: Of all processes.
        tokenizer: For the captions, if any.

    Raises:
        ValueError: The transform cannot be sent to another process.
    """

    def __init__(
        self,
        config: DataConfig,
        paths: list[list[str]],
        census: Census,
        shapes: list[BatchShape],
        num_threads: int,
        tokenizer: Tokenizer | None,
    ):
        num_workers = min(config.num_workers, *(shape.num_rows for shape in shapes))
        self._tokenizer = tokenizer
        self._layouts = {shape: Layout.of(config, shape) for shape in shapes}
        size = max(layout.size for layout in self._layouts.values())
        self._memory = SharedMemory(size, config.prefetch + _SPARE_SLOTS)
        self._numbers = itertools.count()
        self._jobs: dict[int, tuple[Job, int]] = {}  # until the last row is answered, also when the batch is dropped
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._workers: list[_Worker] = []
        try:
            # The workers do not run the program that the transform may be a part of.
            if b"__main__" in pickle.dumps(config.transform):
                raise ValueError("num_workers needs a transform of a module: move it there from the program itself")
            setting = pickle.dumps(_Setting(config, paths, census, shapes, -(-num_threads // num_workers)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"the config cannot be sent to other processes: {error}") from error
        try:
            for number in range(num_workers):
                worker = _spawn(self._memory.descriptor)
                self._workers.append(worker)
                worker.connection.send_bytes(setting)
                name = f"clip-data-worker-{number}"
                threading.Thread(target=self._listen, args=(worker,), name=name, daemon=True).start()
        except BaseException:
            self.close()
            raise

    def start(self, shape: BatchShape, positions: Sequence[int]) -> Job:
        """Begins a batch."""
        while self._memory.num_free == 0 and self._failure is None:
            time.sleep(_POLL_SECONDS)  # until the workers are through with batches that were dropped
        slot, memory = self._memory.take()
        job = Job(positions, shape.num_rows, self._layouts[shape].views(memory), self._tokenizer)
        number = next(self._numbers)
        with self._lock:
            self._jobs[number] = job, shape.num_rows
        # A worker's rows, whose streams it alone reads.
        bounds = [shape.num_rows * i // len(self._workers) for i in range(len(self._workers) + 1)]
        for worker, (first, last) in zip(self._workers, itertools.pairwise(bounds), strict=True):
            try:
                worker.connection.send(_Rows(number, shape, slot, first, job.positions[first:last]))
            except OSError:
                self._ended(worker)
                break
        if self._failure is not None:
            job.fail(RuntimeError(self._failure))
        return job

    def deliver(self, batch: Batch) -> Batch:
        """Returns the batch, or a copy of it where its memory is needed for the next one."""
        if self._memory.num_free:
            return batch
        names = [name for name, *_ in next(iter(self._layouts.values())).arrays]
        copies: dict[str, Any] = {name: getattr(batch, name).copy() for name in names if not name.startswith(EMBEDDING)}
        embeddings = {name: array.copy() for name, array in batch.embeddings.items()}
        return dataclasses.replace(batch, **copies, embeddings=embeddings)

    def close(self) -> None:
        """Ends the processes."""
        self._failure = self._failure or "the pipeline is closed"
        for worker in self._workers:
            worker.process.kill()
        self._workers.clear()

    def _listen(self, worker: _Worker) -> None:
        while True:
            try:
                done: _Done = worker.connection.recv()
            except (OSError, EOFError):
                break
            with self._lock:
                job, rows_left = self._jobs[done.job]
                num_rows = len(done.samples)
                if rows_left == num_rows:
                    del self._jobs[done.job]
                else:
                    self._jobs[done.job] = job, rows_left - num_rows
            if done.error is None:
                job.put(done.first, done.samples, done.faults)
            else:
                is_data, message = done.error
                job.fail((DataError if is_data else RuntimeError)(message))
            del job  # or its memory would be held until the next answer
        self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        status = worker.process.wait()
        self._fail(f"a decoding process ended with status {status}; -9 is what the system does when memory runs out")

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        with self._lock:
            jobs = [job for job, _ in self._jobs.values()]
        for job in jobs:
            job.fail(RuntimeError(self._failure))


def _spawn(memory: int) -> _Worker:
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno()), str(memory)]
        # A session of its own: Ctrl-C is for this process to act on.
        process = subprocess.Popen(
            command,
            pass_fds=(theirs.fileno(), memory),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    return _Worker(process, ours)


def work(connection_descriptor: int, memory_descriptor: int) -> None:
    """What a worker process runs, until the other side is gone.

    Args:
        connection_descriptor: Of its end of the socket.
        memory_descriptor: Of the shared memory's file.
    """
    connection = Connection(connection_descriptor)
    setting: _Setting = connection.recv()
    config = setting.config
    order = Order.of(config, setting.census.counts)
    preparer = Preparer(config, setting.paths, order, setting.census)
    layouts = {shape: Layout.of(config, shape) for shape in setting.shapes}
    size = max(layout.size for layout in layouts.values())
    shared = mmap.mmap(memory_descriptor, 0)
    lock = threading.Lock()

    def run(rows: _Rows, first: int, positions: list[int | None]) -> None:
        samples: list[Sample | None] = [None] * len(positions)
        faults: list[list[Fault]] = [[] for _ in positions]
        error: tuple[bool, str] | None = None
        try:
            arrays = layouts[rows.shape].views(slot_memory(shared, rows.slot, size))
            for i, position in enumerate(positions):
                samples[i] = preparer(position, arrays, first + i, faults[i])
        except BaseException as raised:  # for the caller, in the other process
            where = "".join(f" ({note})" for note in getattr(raised, "__notes__", ()))
            error = isinstance(raised, DataError), f"{type(raised).__name__} in a decoding process: {raised}{where}"
        with lock:
            connection.send(_Done(rows.job, first, samples, faults, error))

    workers = Workers(setting.num_threads)
    while True:
        try:
            rows: Any = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # at once: threads are at work, and nobody waits for it
        preparer.look_ahead(rows.positions)
        for i in range(0, len(rows.positions), ROWS_PER_TASK):
            part = rows.positions[i : i + ROWS_PER_TASK]
            workers.submit(lambda rows=rows, first=rows.first + i, part=part: run(rows, first, part))
