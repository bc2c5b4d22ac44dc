"""Records to a resumable iterator of batches.

``order`` decides which record is sample number n of the run; threads read, decode and tokenise a few batches ahead; the
position belongs to the batch that was delivered last.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numpy as np

from clip_data.batch import Batch
from clip_data.faults import DataError, Fault, FaultLog, RecordError
from clip_data.image import Interpolation, ResizeMode, decode_image
from clip_data.order import Order, Place
from clip_data.records import IndexedShard, Record
from clip_data.sources import SourceConfig, expected_count, list_shards
from clip_data.text import Padding, Tokenizer
from clip_data.workers import Workers

__all__ = ["DataConfig", "Pipeline"]

_ROWS_PER_TASK = 16
_MAX_ATTEMPTS = 64
_CURSOR_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a pipeline reads and how it prepares it.

    Args:
        sources: At least one.
        image_size: Side of the images, in pixels.
        resize_mode: How a picture becomes square, as in ``decode_image``.
        interpolation: Of the resize: ``"bicubic"`` or ``"bilinear"``, always antialiased.
        tokenizer: A directory or a name on the Hugging Face Hub. None: images only; captions are passed on, and may
            be empty.
        text_length: Tokens of a text.
        lower_case: Whether captions are lower-cased before tokenising.
        padding: ``"max_length"`` or ``"longest"``, as in ``Tokenizer``.
        pad_id: Token to pad with; None takes the tokenizer's.
        seed: Of the order of samples.
        shuffle: False takes shards and records as they are listed.
        num_epochs: Times that the data are gone through; None goes on for ever.
        block_shards: Shards whose records are shuffled among themselves. Those of a bucket are held in memory.
        empty_caption: What becomes of samples whose caption is missing or blank: ``"drop"`` or ``"keep"``.
        max_bad_fraction: Share of samples that may be unusable before the run stops, in [0, 1].
        num_threads: That decode; None is one for each core that the process may use.
        prefetch: Batches prepared ahead.

    Raises:
        ValueError: A value outside what is said above.
    """

    sources: tuple[SourceConfig, ...]
    image_size: int
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bicubic"
    tokenizer: str | None
    text_length: int
    lower_case: bool = False
    padding: Padding = "max_length"
    pad_id: int | None = None
    seed: int = 0
    shuffle: bool = True
    num_epochs: int | None = None
    block_shards: int = 8
    empty_caption: Literal["drop", "keep"] = "drop"
    max_bad_fraction: float = 0.1
    num_threads: int | None = None
    prefetch: int = 2

    def __post_init__(self):
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise ValueError("sources must hold at least one source; got none")
        for name in ("image_size", "text_length", "num_epochs", "block_shards", "num_threads", "prefetch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        choices = {
            "resize_mode": ("squash", "shortest", "longest"),
            "interpolation": ("bicubic", "bilinear"),
            "padding": ("max_length", "longest"),
            "empty_caption": ("drop", "keep"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in [0, 1], not {self.max_bad_fraction!r}")

    @property
    def evaluates(self) -> bool:
        """Whether every sample comes exactly once an epoch, padded and masked, rather than in full, mixed batches."""
        return not self.shuffle and self.num_epochs is not None


class Pipeline:
    """An iterator of batches that can continue from any of them.

    With ``shuffle=False`` and a number of epochs it evaluates: sources one after the other, every sample once an epoch;
    the last batch is filled up with rows that ``mask`` rules out, and so is the place of a sample that cannot be used.

    Otherwise it trains: sources mixed by weight, every batch full, running on across the ends of epochs; of a finite
    number of epochs the remainder that makes no full batch is left out. A sample that cannot be used is replaced by one
    drawn from its block.

    Which samples a batch holds does not depend on the number of processes or threads: with n rows for each process,
    process i gets rows i·n to (i+1)·n of every global batch. All processes see the same number of batches.

    Args:
        config: What to read and how to prepare it.
        global_batch_size: Samples of a batch over all processes.
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
        if config.padding == "longest" and process_count > 1:
            raise ValueError("padding must be max_length with several processes, whose batches would differ in width")
        self.config = config
        self._global_batch_size = global_batch_size
        self._batch_size = global_batch_size // process_count
        self._first_row = process_index * self._batch_size
        self._paths = [list_shards(source.shards) for source in config.sources]
        self._log = FaultLog(max_bad_fraction=config.max_bad_fraction)
        self._workers = Workers(config.num_threads or _num_cores())
        self._stop = weakref.finalize(self, self._workers.stop)
        self._position = self._next_start = 0
        self._jobs: deque[_Job] = deque()
        try:
            counts = self._count()
            order = Order(
                counts,
                [source.weight for source in config.sources],
                seed=config.seed,
                shuffle=config.shuffle,
                block_shards=config.block_shards,
                concatenate=config.evaluates,
            )
            self.num_samples: int = order.num_samples
            self._identity = _identity(config, self._paths, counts)
            self._preparer = _Preparer(config, self._paths, order)
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
        return -(-total // self._global_batch_size) if self.config.evaluates else total // self._global_batch_size

    @property
    def faults(self) -> dict[str, int]:
        """Number of faults by reason, in what was delivered to this process so far."""
        return self._log.counts

    @property
    def recent_faults(self) -> list[Fault]:
        """The latest faults, a hundred at most, with their places."""
        return list(self._log.recent)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._stop.alive:
            raise ValueError("the pipeline is closed; make a new one")
        self._fill()
        if not self._jobs:
            raise StopIteration
        job = self._jobs[0]
        batch = job.future.result()
        self._jobs.popleft()
        self._position = job.start + self._global_batch_size
        self._fill()
        faults = [fault for row in job.faults for fault in row]
        lost = 0 if self.config.evaluates else sum(fault.lost for fault in faults)
        self._log.add(faults, num_samples=job.num_real + lost)
        return batch

    def cursor(self) -> dict[str, Any]:
        """Returns where the run stands after the batch delivered last, as JSON values of less than 4 KB.

        The position counts samples over all processes: it is the same in each, and serves any number of them and any
        batch size.
        """
        return {"version": _CURSOR_VERSION, "position": self._position, **self._identity}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Continues from a cursor.

        Args:
            cursor: From ``cursor()`` of a pipeline over the same data and with the same seed.

        Raises:
            ValueError: The cursor belongs to other data or another order; the message says what differs.
        """
        here = json.loads(json.dumps(self.cursor()))
        cursor = json.loads(json.dumps(cursor))
        differing = [
            f"{name} was {cursor.get(name)!r} and is {here.get(name)!r}"
            for name in dict.fromkeys([*here, *cursor])
            if name != "position" and cursor.get(name) != here.get(name)
        ]
        position = cursor.get("position")
        if not isinstance(position, int) or position < 0:
            differing.append(f"position must be a count of samples, not {position!r}")
        if differing:
            raise ValueError(f"the cursor is not of this pipeline: {'; '.join(differing)}")
        self._drop_jobs()
        self._position = self._next_start = position

    def rewind(self) -> None:
        """Starts again from the first batch."""
        self._drop_jobs()
        self._position = self._next_start = 0

    def close(self) -> None:
        """Stops the threads; one that hangs in a read is left behind. The pipeline yields nothing after it."""
        self._drop_jobs()
        self._stop()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self) -> list[list[int]]:
        """Counts the records of every shard."""

        def count(item: tuple[SourceConfig, str]) -> tuple[int, Fault | None]:
            source, path = item
            expected = expected_count(path)
            if expected is not None:
                return expected, None
            shard = IndexedShard(source, path)
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

    def _fill(self) -> None:
        total = None if self.config.num_epochs is None else self.num_samples * self.config.num_epochs
        while len(self._jobs) < self.config.prefetch:
            start = self._next_start
            last = start if self.config.evaluates else start + self._global_batch_size - 1
            if total is not None and last >= total:
                return
            first = start + self._first_row
            num_real = self._batch_size if total is None else min(max(total - first, 0), self._batch_size)
            job = _Job(start, first, self._batch_size, num_real, self._preparer)
            self._jobs.append(job)
            self._next_start += self._global_batch_size
            for row in range(0, self._batch_size, _ROWS_PER_TASK):
                self._workers.submit(lambda job=job, row=row: job.run(row, min(row + _ROWS_PER_TASK, len(job.faults))))

    def _drop_jobs(self) -> None:
        for job in self._jobs:
            job.dropped = True
        self._jobs.clear()


class _Preparer:
    """Prepares the sample of a position, from any thread."""

    def __init__(self, config: DataConfig, paths: list[list[str]], order: Order):
        self.config = config
        self.tokenizer = None
        if config.tokenizer is not None:
            self.tokenizer = Tokenizer(
                config.tokenizer,
                text_length=config.text_length,
                lower_case=config.lower_case,
                padding=config.padding,
                pad_id=config.pad_id,
            )
        self._paths = paths
        self._order = order
        self._open: OrderedDict[tuple[int, int], _Slot] = OrderedDict()
        # The block at hand and the next one, of every source.
        self._max_open = 2 * config.block_shards * len(config.sources)
        self._lock = threading.Lock()

    def __call__(self, position: int, faults: list[Fault]) -> tuple[Record, np.ndarray] | None:
        """Returns the sample of a position, or its replacement; None where there is none."""
        place = self._order(position)
        attempt = 0
        while True:
            try:
                return self._prepare(place, faults)
            except _Unusable as unusable:
                faults.append(unusable.fault)
                if self.config.evaluates:
                    return None
                attempt += 1
                if attempt == _MAX_ATTEMPTS:
                    raise DataError(
                        f"{attempt} records in a row could not be used; check the source's keys and files. "
                        f"The last one: {unusable.fault}"
                    ) from unusable
                place = self._order.replacement(position, attempt)

    def _prepare(self, place: Place, faults: list[Fault]) -> tuple[Record, np.ndarray]:
        shard = self._shard(place.source, place.shard)
        key, offset = "", 0
        try:
            if place.row >= len(shard):
                raise RecordError("shard_cut_short", f"{len(shard)} records where its _stats.json states more")
            offset = shard.offset(place.row)
            record = shard.read(place.row)
            key = record.key
            if self.tokenizer is not None and self.config.empty_caption == "drop" and not record.caption.strip():
                raise RecordError("empty_caption", f"the caption is {record.caption!r}")
            config = self.config
            pixels = decode_image(
                record.image,
                size=config.image_size,
                resize_mode=config.resize_mode,
                interpolation=config.interpolation,
            )
        except RecordError as error:
            fault = Fault(shard=shard.path, offset=offset, key=key, reason=error.reason, detail=error.detail)
            raise _Unusable(fault) from error
        if not record.caption_is_utf8:
            detail = f"kept as {record.caption!r:.100}"
            faults.append(
                Fault(shard=shard.path, offset=offset, key=key, reason="caption_not_utf8", detail=detail, lost=False)
            )
        return record, pixels

    def _shard(self, source: int, number: int) -> IndexedShard:
        with self._lock:
            slot = self._open.setdefault((source, number), _Slot())
            self._open.move_to_end((source, number))
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        with slot.lock:
            if slot.shard is None:
                slot.shard = IndexedShard(self.config.sources[source], self._paths[source][number])
            return slot.shard


class _Slot:
    """A shard that one thread opens while the others that want it wait."""

    def __init__(self):
        self.lock = threading.Lock()
        self.shard: IndexedShard | None = None


class _Unusable(Exception):  # noqa: N818
    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


class _Job:
    """A batch being prepared: threads fill ranges of its rows, and the one that ends last completes it."""

    def __init__(self, start: int, first: int, num_rows: int, num_real: int, preparer: _Preparer):
        size = preparer.config.image_size
        self.start, self.num_real = start, num_real
        self.future: Future[Batch] = Future()
        self.faults: list[list[Fault]] = [[] for _ in range(num_rows)]
        self.dropped = False
        self._first, self._preparer = first, preparer
        self._records: list[Record | None] = [None] * num_rows
        self._image = np.empty((num_rows, size, size, 3), np.uint8)
        self._rows_left = num_rows
        self._lock = threading.Lock()

    def run(self, begin: int, end: int) -> None:
        try:
            for row in range(begin, end):
                if self.dropped:
                    return
                sample = self._preparer(self._first + row, self.faults[row]) if row < self.num_real else None
                if sample is None:
                    self._image[row] = 0
                else:
                    self._records[row], self._image[row] = sample
            with self._lock:
                self._rows_left -= end - begin
                if self._rows_left:
                    return
            self.future.set_result(self._complete())
        except BaseException as error:  # handed to the caller's thread, whatever it is
            with self._lock:
                self.dropped = True
                if not self.future.done():
                    self.future.set_exception(error)

    def _complete(self) -> Batch:
        records = self._records
        captions = [record.caption if record else "" for record in records]
        labels = [record.label if record else None for record in records]
        input_ids = attention_mask = None
        mask = np.array([record is not None for record in records])
        if self._preparer.tokenizer is not None:
            input_ids, attention_mask = self._preparer.tokenizer(captions)
            input_ids[~mask], attention_mask[~mask] = 0, 0
        return Batch(
            image=self._image,
            input_ids=input_ids,
            attention_mask=attention_mask,
            mask=mask,
            image_ids=_checksums([record.image if record else None for record in records]),
            text_ids=_checksums([record.caption.encode("utf-8", "replace") if record else None for record in records]),
            label=_labels(labels),
            key=[record.key if record else "" for record in records],
            caption=captions,
        )


def _checksums(items: list[bytes | None]) -> np.ndarray:
    return np.array([-1 if item is None else google_crc32c.value(item) & 0x7FFFFFFF for item in items], np.int32)


def _labels(labels: list[int | None]) -> np.ndarray | None:
    if all(label is None for label in labels):
        return None
    return np.array([-1 if label is None else label for label in labels], np.int32)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _identity(config: DataConfig, paths: list[list[str]], counts: list[list[int]]) -> dict[str, Any]:
    """What the order of samples is a function of, in JSON values: a cursor is good only where all of it is equal."""
    sources = []
    for source, names, numbers in zip(config.sources, paths, counts, strict=True):
        # Data may move to another directory or store: only what differs between the shards' names counts.
        folder = os.path.commonprefix(names).rpartition("/")[0] if len(names) > 1 else os.path.dirname(names[0])
        described = [
            source.format,
            [[name[len(folder) :], number] for name, number in zip(names, numbers, strict=True)],
        ]
        digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=6).hexdigest()
        sources.append([len(names), sum(numbers), digest, *([] if config.evaluates else [source.weight])])
    return {
        "seed": config.seed,
        "shuffle": config.shuffle,
        "evaluates": config.evaluates,
        "block_shards": config.block_shards,
        "empty_caption": "keep" if config.tokenizer is None else config.empty_caption,
        "sources": sources,
    }
