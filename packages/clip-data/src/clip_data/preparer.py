"""One sample of a batch: read, checked, decoded into its row; replaced by another where it cannot be used."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from clip_data.buckets import REMOTE
from clip_data.buffers import EMBEDDING
from clip_data.census import Census
from clip_data.config import DataConfig
from clip_data.embedding import read_embedding
from clip_data.faults import SKIPPED, DataError, Fault, RecordError
from clip_data.image import decode_image, decode_patches
from clip_data.order import Order, Place
from clip_data.records import IndexedShard, Record
from clip_data.transform import transform_record

__all__ = ["Preparer", "Sample"]

_MAX_ATTEMPTS = 64
_MAX_SKIPPED = 4096

logger = logging.getLogger("clip_data")


class Sample(NamedTuple):
    """What a row holds beside its pixels, and where it came from; the ids are checksums."""

    key: str
    caption: str
    label: int | None
    image_id: int
    text_id: int
    place: Place
    key_is_path: bool

    @staticmethod
    def of(record: Record, place: Place) -> Sample:
        """Takes from a record what stays when its image is decoded."""
        text = record.caption.encode("utf-8", "replace")  # a transform may have made anything of it
        image_id = _checksum(record.image) if record.image else -1
        return Sample(
            record.key, text.decode("utf-8"), record.label, image_id, _checksum(text), place, record.key_is_path
        )


class Preparer:
    """Prepares the sample of a position, from any thread.

    Args:
        config: What to prepare and how.
        paths: For each source its shards.
        order: Of the samples.
        census: Of the shards' records.
    """

    def __init__(self, config: DataConfig, paths: Sequence[Sequence[str]], order: Order, census: Census):
        self.config = config
        self._paths = paths
        self._order = order
        self._census = census
        self._open: OrderedDict[tuple[int, int], _Slot] = OrderedDict()
        # At most the block at hand and the next one, of every source; a shard goes when its block is done.
        self._max_open = 2 * config.block_shards * len(config.sources)
        self._begun: deque[int] = deque([0], maxlen=config.prefetch)  # first positions of the batches at work
        self._ahead: set[tuple[int, int]] = set()
        self._has_remote = any(path.startswith(REMOTE) for names in paths for path in names)
        self._lock = threading.Lock()

    def __call__(
        self, position: int | None, arrays: Mapping[str, np.ndarray], row: int, faults: list[Fault]
    ) -> Sample | None:
        """Prepares a row.

        Args:
            position: Of its sample; None beyond the end of the data.
            arrays: Of the batch, as ``Layout`` names them.
            row: That its pixels are written to: zeros where there is no sample.
            faults: That what is wrong is added to.

        Returns:
            The sample of the position, or its replacement; None where there is none.

        Raises:
            DataError: None of many replacements could be used.
        """
        sample = None if position is None else self._find(position, arrays, row, faults)
        if sample is None:
            for array in arrays.values():
                array[row] = 0
        return sample

    def remarks(self, position: int) -> list[Fault]:
        """Returns what is wrong with a shard that was not opened before, where it loses no sample.

        Args:
            position: Of a sample; it is said of the first of a shard.

        Raises:
            OSError: The shard cannot be read.
        """
        if not self._census.stated:
            return []
        place, end = self._order.locate(position)
        if place.row or place[:2] not in self._census.stated:
            return []
        shard, stated = self._shard(place.source, place.shard, end), self._stated(place)
        if len(shard) > stated:
            detail = f"its _stats.json states {stated} records, and the {len(shard) - stated} after them are not read"
            return [Fault(shard=shard.path, reason="wrong_count", detail=detail, lost=False)]
        return [shard.fault] if shard.fault is not None and len(shard) == stated else []

    def stored(self, position: int) -> bytes:
        """Returns the bytes of a position's TFRecord, as they are stored.

        Args:
            position: Of the sample.

        Raises:
            RecordError: Their checksum is wrong, or the shard ends before them.
            OSError: The shard cannot be read.
        """
        place, end = self._order.locate(position)
        return self._shard(place.source, place.shard, end).read_stored(place.row)

    def first_fields(self, count: int) -> Iterator[dict[str, Any]]:
        """Yields the fields of the first records of every source.

        Args:
            count: Of its records, at most.
        """
        for source, paths in enumerate(self._paths):
            yield from itertools.islice(
                (fields for number in range(len(paths)) for fields in self._shard(source, number, 0).fields()), count
            )

    def look_ahead(self, positions: Iterable[int | None]) -> None:
        """Lets go of shards whose block is done, and begins to fetch those of buckets that come next.

        Args:
            positions: Of a batch that is begun; no more than ``prefetch`` are at work at a time.
        """
        real = [position for position in positions if position is not None]
        if not real:
            return
        self._begun.append(min(real))
        done = min(self._begun)
        with self._lock:
            for place in [place for place, slot in self._open.items() if slot.end <= done]:
                del self._open[place]
        if not self._has_remote:
            return
        following = [self._order.following(position) for position in real]
        wanted = {(source, shard): block.end for source, block in following for shard in block.shards}
        with self._lock:
            new = {place: end for place, end in wanted.items() if place not in self._open and place not in self._ahead}
            self._ahead = {*wanted}
        if new:
            threading.Thread(target=self._fetch, args=(new,), name="clip-data-ahead", daemon=True).start()

    def _fetch(self, places: Mapping[tuple[int, int], int]) -> None:
        for (source, number), end in places.items():
            if self._paths[source][number].startswith(REMOTE):
                try:
                    self._shard(source, number, end)
                except OSError as error:  # whoever needs the shard tries again, and raises
                    logger.debug("fetching ahead: %s", error)

    def _find(self, position: int, arrays: Mapping[str, np.ndarray], row: int, faults: list[Fault]) -> Sample | None:
        (place, end), draw = self._order.locate(position), self._order.draw(position)
        faults.extend(self.remarks(position))
        attempt = num_skipped = 0
        while True:
            try:
                # What is wrong with a replacement counts where its own position comes.
                shard = self._shard(place.source, place.shard, end)
                return self._prepare(shard, place, draw, arrays, row, [] if attempt else faults)
            except _Unusable as unusable:
                if not attempt:
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

    def _prepare(
        self,
        shard: IndexedShard,
        place: Place,
        caption_draw: int,
        arrays: Mapping[str, np.ndarray],
        row: int,
        faults: list[Fault],
    ) -> Sample:
        key, offset = "", None
        try:
            if place.row >= len(shard):
                raise shard.lacks(self._stated(place))
            offset = shard.offset(place.row)
            record = shard.read(place.row, draw=caption_draw)
            key = record.key
            if self.config.transform is not None:
                record = transform_record(self.config.transform, record)
            if self.config.drops_empty_captions and not record.caption.strip():
                raise RecordError(
                    "empty_caption", f"the caption is {record.caption!r}; the fields are {', '.join(record.metadata)}"
                )
            for name, width in self.config.embeddings.items():
                arrays[EMBEDDING + name][row] = read_embedding(record.metadata, name, width)
            if self.config.has_images:
                self._decode(record.image, arrays, row)
        except RecordError as error:
            where = {"shard": shard.path, "row": place.row, "offset": offset, "key": key or error.key}
            raise _Unusable(Fault(**where, reason=error.reason, detail=error.detail)) from error
        except Exception as error:  # a transform's, or one that nobody foresaw: say of which record
            error.add_note(f"with row {place.row} of {shard.path}" + f", key {key}" * bool(key))
            raise
        if not record.caption_is_utf8:
            detail = f"kept as {record.caption!r:.100}"
            where = {"shard": shard.path, "row": place.row, "offset": offset, "key": key}
            faults.append(Fault(**where, reason="caption_not_utf8", detail=detail, lost=False))
        return Sample.of(record, place)

    def _stated(self, place: Place) -> int:
        return self._census.counts[place.source][place.shard]

    def _decode(self, image: bytes, arrays: Mapping[str, np.ndarray], row: int) -> None:
        config = self.config
        if config.resize_mode != "naflex":
            decode_image(
                image,
                size=config.image_shape,
                resize_mode=config.resize_mode,
                interpolation=config.interpolation,
                strict=config.strict,
                scaled=config.decodes_scaled,
                out=arrays["image"][row],
            )
            return
        max_patches = arrays["image"].shape[1]
        patches, *grid = decode_patches(
            image,
            patch_size=config.patch_size,
            max_patches=max_patches,
            interpolation=config.interpolation,
            strict=config.strict,
            scaled=config.decodes_scaled,
        )
        arrays["image"][row, : len(patches)], arrays["image"][row, len(patches) :] = patches, 0
        arrays["pixel_attention_mask"][row] = np.arange(max_patches) < len(patches)
        arrays["spatial_shapes"][row] = grid

    def _shard(self, source: int, number: int, end: int) -> IndexedShard:
        """Returns a shard that is open until the position ``end`` is reached."""
        with self._lock:
            slot = self._open.setdefault((source, number), _Slot())
            slot.end = max(slot.end, end)
            self._open.move_to_end((source, number))
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        with slot.lock:
            if slot.shard is None:
                path = self._paths[source][number]
                slot.shard = IndexedShard(self.config.sources[source], path, images=self.config.has_images)
            return slot.shard


class _Slot:
    """A shard that one thread opens while the others that want it wait."""

    def __init__(self):
        self.lock = threading.Lock()
        self.shard: IndexedShard | None = None
        self.end: int = 0


class _Unusable(Exception):  # noqa: N818
    def __init__(self, fault: Fault):
        super().__init__(str(fault))
        self.fault = fault


def _checksum(data: bytes) -> int:
    return google_crc32c.value(data) & 0x7FFFFFFF
