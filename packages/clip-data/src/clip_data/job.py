"""A batch in the making: samples read, decoded and tokenised by many threads, bad ones replaced."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import google_crc32c
import numpy as np

from clip_data.batch import Batch
from clip_data.config import DataConfig
from clip_data.faults import SKIPPED, DataError, Fault, RecordError
from clip_data.image import decode_image
from clip_data.order import Order, Place
from clip_data.records import IndexedShard, Record
from clip_data.text import Tokenizer
from clip_data.transform import transform_record

__all__ = ["Job", "Preparer"]

_MAX_ATTEMPTS = 64
_MAX_SKIPPED = 4096


class Preparer:
    """Prepares the sample of a position, from any thread.

    Args:
        config: What to prepare and how.
        paths: For each source its shards.
        order: Of the samples.
    """

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
        attempt = num_skipped = 0
        while True:
            try:
                return self._prepare(place, self._order.draw(position), faults)
            except _Unusable as unusable:
                faults.append(unusable.fault)
                if self.config.evaluates:
                    return None
                attempt += 1
                num_skipped += unusable.fault.reason in SKIPPED
                if attempt - num_skipped == _MAX_ATTEMPTS:
                    raise DataError(
                        f"{_MAX_ATTEMPTS} records could not be used for one sample; check the source's keys and files. "
                        f"The last one: {unusable.fault}"
                    ) from unusable
                if num_skipped == _MAX_SKIPPED:
                    raise DataError(
                        f"{num_skipped} records were not wanted for one sample: the filters or the transform leave "
                        f"next to nothing. The last one: {unusable.fault}"
                    ) from unusable
                place = self._order.replacement(position, attempt, num_skipped=num_skipped)

    def _prepare(self, place: Place, caption_draw: int, faults: list[Fault]) -> tuple[Record, np.ndarray]:
        shard = self._shard(place.source, place.shard)
        key, offset = "", None
        try:
            if place.row >= len(shard):
                raise RecordError("shard_cut_short", f"{len(shard)} records where its _stats.json states more")
            offset = shard.offset(place.row)
            record = shard.read(place.row, draw=caption_draw)
            key = record.key
            if self.config.transform is not None:
                record = transform_record(self.config.transform, record)
            if self.tokenizer is not None and self.config.empty_caption == "drop" and not record.caption.strip():
                raise RecordError(
                    "empty_caption", f"the caption is {record.caption!r}; the fields are {', '.join(record.metadata)}"
                )
            config = self.config
            pixels = decode_image(
                record.image,
                size=config.image_size,
                resize_mode=config.resize_mode,
                interpolation=config.interpolation,
            )
        except RecordError as error:
            fault = Fault(
                shard=shard.path, row=place.row, offset=offset, key=key, reason=error.reason, detail=error.detail
            )
            raise _Unusable(fault) from error
        if not record.caption_is_utf8:
            detail = f"kept as {record.caption!r:.100}"
            where = {"shard": shard.path, "row": place.row, "offset": offset, "key": key}
            faults.append(Fault(**where, reason="caption_not_utf8", detail=detail, lost=False))
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


class Job:
    """A batch being prepared: threads fill ranges of its rows, and the one that ends last completes it.

    Args:
        start: Position of the global batch's first sample.
        positions: Of this process's samples, row by row.
        num_rows: Of this process; those beyond ``positions`` stay empty.
        preparer: Of the pipeline.
    """

    def __init__(self, start: int, positions: Sequence[int], num_rows: int, preparer: Preparer):
        size = preparer.config.image_size
        self.start, self.positions = start, positions
        self.future: Future[Batch] = Future()
        self.faults: list[list[Fault]] = [[] for _ in range(num_rows)]
        self.dropped = False
        self._preparer = preparer
        self._records: list[Record | None] = [None] * num_rows
        self._image = np.empty((num_rows, size, size, 3), np.uint8)
        self._rows_left = num_rows
        self._lock = threading.Lock()

    def run(self, begin: int, end: int) -> None:
        """Fills rows ``begin`` to ``end``; what it raises comes out of ``future``."""
        try:
            for row in range(begin, end):
                if self.dropped:
                    return
                is_real = row < len(self.positions)
                sample = self._preparer(self.positions[row], self.faults[row]) if is_real else None
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

    def drop(self) -> None:
        """Gives the batch up: whoever waits for it is told, and its threads go on to other work."""
        self.dropped = True
        self.future.cancel()

    def _complete(self) -> Batch:
        records = self._records
        captions = [record.caption if record else "" for record in records]
        labels = [record.label if record else None for record in records]
        input_ids = attention_mask = None
        mask = np.array([record is not None for record in records])
        if self._preparer.tokenizer is not None:
            input_ids, attention_mask = self._preparer.tokenizer(captions)
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
