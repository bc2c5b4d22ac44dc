"""Batches whose records are parsed and decoded by tf.data, in the order that is ours.

tf.data is handed the stored bytes of records, a few at a time in the order of the samples, and returns their fields and
pixels, worked out without the interpreter's lock. It is asked for nothing else: no order, no position, no handling of
faults. A record that it cannot do as the threads do it (damaged, of another size, rotated, no JPEG, without a caption)
is prepared by the threads, which skip, replace and count it as always.

TensorFlow is imported when an executor is made, and sees no accelerator.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clip_data.batch import Batch
from clip_data.buffers import Buffers, Layout
from clip_data.config import DataConfig
from clip_data.decode import is_plain_jpeg
from clip_data.executor import ROWS_PER_TASK
from clip_data.faults import Fault, RecordError
from clip_data.fields import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS, to_record
from clip_data.job import Job
from clip_data.order import Order
from clip_data.preparer import Preparer, Sample
from clip_data.schedule import BatchShape
from clip_data.text import Tokenizer
from clip_data.workers import Workers, wait_at_exit

__all__ = ["TensorflowExecutor", "refusals"]

_NO_NUMBER = np.iinfo(np.int64).min  # stands for a field that a record lacks
_NUM_LOOKED_AT = 64  # records, for the types of their fields


class _Rows(NamedTuple):
    job: Job
    first: int
    positions: list[int | None]


class TensorflowExecutor:
    """Prepares batches by one tf.data pipeline.

    Args:
        preparer: Of the samples that tf.data leaves.
        order: Of the samples.
        workers: For those samples; their end is not this one's to say.
        shape: Of all batches.
        num_threads: That decode.
        tokenizer: For the captions, if any.

    Raises:
        ValueError: The config asks for what tf.data cannot do; TensorFlow is not installed.
    """

    def __init__(
        self,
        preparer: Preparer,
        order: Order,
        workers: Workers,
        shape: BatchShape,
        num_threads: int,
        tokenizer: Tokenizer | None,
    ):
        reasons = refusals(preparer.config)
        if reasons:
            raise ValueError(f'executor="tensorflow" {"; it ".join(reasons)}: take executor="threads"')
        self._tf = _import_tensorflow()
        self._preparer, self._order, self._workers = preparer, order, workers
        self._tokenizer = tokenizer
        self._size = min(ROWS_PER_TASK, shape.num_rows)  # records that tf.data gets at a time
        config = preparer.config
        self._layout = Layout.of(config, shape)
        self._buffers = Buffers(self._layout.size, num_kept=config.prefetch + 2)
        self._features = self._find_features()
        self._tasks: queue.SimpleQueue[_Rows | None] = queue.SimpleQueue()
        self._inside: deque[_Rows] = deque()
        self._failure: BaseException | None = None
        tf = self._tf
        blank = io.BytesIO()
        Image.fromarray(np.zeros((*config.image_shape, 3), np.uint8)).save(blank, "JPEG")
        self._blank = blank.getvalue()
        data = tf.data.Dataset.from_generator(self._stored, output_signature=tf.TensorSpec([self._size], tf.string))
        data = data.map(self._prepare, num_parallel_calls=num_threads, deterministic=True).prefetch(1)
        thread = threading.Thread(target=self._receive, args=(data,), name="clip-data-tensorflow", daemon=True)
        wait_at_exit(thread)
        thread.start()

    def start(self, shape: BatchShape, positions: Sequence[int]) -> Job:
        """Begins a batch."""
        self._preparer.look_ahead(positions)
        arrays = self._layout.views(self._buffers.take())
        job = Job(positions, shape.num_rows, arrays, self._tokenizer)
        for first in range(0, shape.num_rows, self._size):
            self._tasks.put(_Rows(job, first, job.positions[first : first + self._size]))
        if self._failure is not None:
            job.fail(self._failure)
        return job

    def deliver(self, batch: Batch) -> Batch:
        """Returns the batch: its memory is not used again before it is gone."""
        return batch

    def close(self) -> None:
        """Lets tf.data come to its end; does not wait for it."""
        self._tasks.put(None)

    def _stored(self) -> Iterator[np.ndarray]:
        """Yields the bytes of the rows that are begun, one after the other; ``b""`` for those left to the threads."""
        while (rows := self._tasks.get()) is not None:
            self._inside.append(rows)
            stored = np.full(self._size, b"", object)
            if not rows.job.dropped:
                for i, position in enumerate(rows.positions):
                    stored[i] = b"" if position is None else self._read(position)
            del rows  # or its memory would be held until the next one
            yield stored

    def _read(self, position: int) -> bytes:
        try:
            return self._preparer.stored(position)
        except (RecordError, OSError):  # the threads meet it again, and say what it means
            return b""

    def _prepare(self, stored: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """The graph: from stored bytes [n] to fields [n], the images as stored among them, and n times pixels."""
        tf, config = self._tf, self._preparer.config
        defaults = {bytes: (tf.string, b""), int: (tf.int64, _NO_NUMBER)}
        spec = {name: tf.io.FixedLenFeature([], *defaults[kind]) for name, kind in self._features.items()}
        fields = tf.io.parse_example(stored, spec)
        image = tf.fill([self._size], b"")
        for name in reversed(_image_keys(config)):
            value = fields.pop(name)
            image = tf.where(value == b"", image, value)
        data = tf.where(tf.strings.substr(image, 0, 3) == b"\xff\xd8\xff", image, self._blank)

        def decode(one: Any) -> Any:
            # What is of another size is not decoded, however large it says it is. libjpeg's accurate transform is
            # simplejpeg's too; by default TensorFlow takes the one that is 5 levels off.
            is_of_size = tf.reduce_all(tf.io.extract_jpeg_shape(one)[:2] == config.image_shape)
            return tf.io.decode_jpeg(tf.where(is_of_size, one, self._blank), 3, dct_method="INTEGER_ACCURATE")

        # The images stay apart: stacking them costs a third of what decoding them does.
        return {**fields, "__image__": image}, tuple(map(decode, tf.unstack(data)))

    def _receive(self, data: Any) -> None:
        results = iter(data)
        while True:
            try:
                columns, pixels = next(results)
                # Without a copy, as numpy() would make one.
                done = {name: np.asarray(column) for name, column in columns.items()}, [*map(np.asarray, pixels)]
                del columns, pixels
            except StopIteration:
                self._fail(RuntimeError("tf.data has come to its end"))
                return
            except self._tf.errors.InvalidArgumentError:
                done = None  # one of these records is damaged or of another kind; which, the threads find out
            except BaseException as error:  # handed to the caller's thread, whatever it is
                self._fail(error)
                return
            rows = self._inside.popleft()
            self._workers.submit(lambda rows=rows, done=done: self._put(rows, done))
            del rows, done

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        with contextlib.suppress(queue.Empty):
            while (rows := self._tasks.get_nowait()) is not None:
                self._inside.append(rows)
        for rows in self._inside:
            rows.job.fail(error)
        self._tasks.put(None)

    def _put(self, rows: _Rows, done: tuple[dict[str, np.ndarray], list[np.ndarray]] | None) -> None:
        job, first, positions = rows
        samples: list[Sample | None] = []
        faults: list[list[Fault]] = [[] for _ in positions]
        try:
            for i, position in enumerate(positions):
                if job.dropped:
                    return
                sample, out = None, job.arrays["image"][first + i]
                if done is not None and position is not None:
                    sample = self._sample(position, {name: column[i] for name, column in done[0].items()})
                if sample is None:
                    sample = self._preparer(position, job.arrays, first + i, faults[i])
                elif done is not None:
                    out[:] = done[1][i]
                samples.append(sample)
        except BaseException as error:  # handed to the caller's thread, whatever it is
            job.fail(error)
        else:
            job.put(first, samples, faults)

    def _sample(self, position: int, fields: dict[str, Any]) -> Sample | None:
        """Returns a row's sample, or None where its record is not one that tf.data did as the threads do."""
        config = self._preparer.config
        if not is_plain_jpeg(fields["__image__"], *config.image_shape):
            return None
        fields = {name: value for name, value in fields.items() if value != b"" and value != _NO_NUMBER}
        place = self._order(position)
        if self._preparer.remarks(position):
            return None
        try:
            record = to_record(
                fields, config.sources[place.source], shard="", row=place.row, draw=self._order.draw(position)
            )
        except RecordError:
            return None
        if not record.caption_is_utf8 or (config.drops_empty_captions and not record.caption.strip()):
            return None
        return Sample.of(record, place)

    def _find_features(self) -> dict[str, type]:
        """Returns the fields to parse, and whether they hold bytes or whole numbers in the first records."""
        config = self._preparer.config
        names = [*_image_keys(config), "key"]
        for source in config.sources:
            captions = source.caption_key
            names += CAPTION_KEYS if captions == "auto" else [captions] if isinstance(captions, str) else list(captions)
            names += LABEL_KEYS if source.label_key is None else [source.label_key]
        kinds: dict[str, type] = {}
        for fields in self._preparer.first_fields(_NUM_LOOKED_AT):
            for name in names:
                kind = type(fields.get(name, []))
                if kind in (bytes, int) and kinds.setdefault(name, kind) is not kind:
                    raise ValueError(f"field {name!r} holds numbers here and bytes there")
        return {name: kinds.get(name, bytes) for name in names}


def refusals(config: DataConfig) -> list[str]:
    """Returns what a config asks for that tf.data does not do as the threads do it, in words.

    Args:
        config: Of a pipeline.
    """
    answers = {
        "reads TFRecord alone": all(source.format == "tfrecord" for source in config.sources),
        "knows no transform and no filters": config.transform is None
        and not any(source.filters for source in config.sources),
        "decodes images, and reads none without them": config.has_images,
        "makes no patches": config.resize_mode != "naflex",
        "reads no embeddings": not config.embeddings,
        "decodes in this process, without num_workers": not config.num_workers,
        "wants one image_key for all sources": len({source.image_key for source in config.sources}) == 1,
        "needs strict=False, for TensorFlow does not tell of JPEGs that libjpeg warns about": not config.strict,
    }
    return [reason for reason, is_met in answers.items() if not is_met]


def _image_keys(config: DataConfig) -> tuple[str, ...]:
    key = config.sources[0].image_key
    return IMAGE_KEYS if key == "auto" else (key,)


def _import_tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ValueError('executor="tensorflow" needs TensorFlow: pip install "clip-data[tensorflow]"') from error
    for kind in ("GPU", "TPU"):
        if tf.config.get_visible_devices(kind):
            tf.config.set_visible_devices([], kind)
    return tf
