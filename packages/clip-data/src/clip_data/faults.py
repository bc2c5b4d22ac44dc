"""What was lost and why, and when to give up.

Everything that reads data reports a ``Fault`` here instead of dying or keeping silent; who replaces a lost sample,
and by which one, is decided in ``order`` and done in ``pipeline``.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["SKIPPED", "DataError", "Fault", "FaultLog", "Reason", "RecordError", "empty_shard"]

Reason = Literal[
    "bad_checksum",  # the bytes of one record do not match their checksum
    "bad_record",  # the record cannot be parsed, or a field has the wrong type
    "bad_image",  # not an image, or a damaged one
    "image_too_large",  # refused from its header, before any memory is taken
    "missing_image",
    "missing_label",  # the source names a label field that the record lacks
    "missing_embedding",  # likewise, of a vector that the pipeline is asked for
    "empty_caption",
    "caption_not_utf8",  # kept, with U+FFFD where bytes were wrong
    "shard_cut_short",  # everything before the cut is kept
    "bad_length",  # a damaged length: the rest of the shard cannot be found
    "empty_shard",
    "bad_shard",  # nothing of it can be read
    "duplicate_key",  # kept; of adjacent tar members of one name, the first
    "filtered",  # not wanted, by a filter or the transform
    "null_image",  # a row that says itself that it has no image, as img2dataset writes failed downloads
]

SKIPPED: frozenset[Reason] = frozenset({"filtered", "null_image"})
"""Reasons that are no fault of the data: replaced like one, counted apart, and without a bound."""

_NUM_LOGGED = 5  # of each reason at WARNING; the rest at DEBUG
_NUM_ALWAYS_ALLOWED = 16  # so that one bad record in a small set is not a fraction

logger = logging.getLogger("clip_data")


class DataError(RuntimeError):
    """The data are too damaged to go on with."""


class RecordError(ValueError):
    """One record, or the rest of one shard, cannot be used."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that was wrong with the data.

    Args:
        shard: Path of the shard.
        reason: One of the words of ``Reason``.
        detail: What was seen, in words.
        offset: Byte offset in the shard, where its format has such places.
        row: Number of the record in the shard.
        key: The record's key, or ``""`` where it could not be read.
        lost: Whether a sample was lost to it.
    """

    shard: str
    reason: Reason
    detail: str
    offset: int | None = None
    row: int | None = None
    key: str = ""
    lost: bool = True

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        place = row if self.offset is None else f" at byte {self.offset}"
        key = f", key {self.key}" if self.key else ""
        return f"{self.shard}{place}{key}: {self.reason}: {self.detail}"


def empty_shard(path: str) -> Fault:
    """Returns the fault of a shard without a byte."""
    return Fault(shard=path, reason="empty_shard", detail="the file is empty", lost=False)


class FaultLog:
    """Counts faults by reason, keeps the latest ones, and says when there are too many.

    Args:
        max_bad_fraction: The share of samples that may be lost, in [0, 1]; the first 16 are always allowed.

    >>> log = FaultLog(max_bad_fraction=0.01)
    >>> log.add([Fault(shard="a.tar", offset=512, reason="bad_image", detail="not an image")], num_samples=1000)
    >>> log.counts
    {'bad_image': 1}
    """

    def __init__(self, *, max_bad_fraction: float):
        self.max_bad_fraction = max_bad_fraction
        self.recent: deque[Fault] = deque(maxlen=100)
        self._counts: Counter[str] = Counter()
        self._num_samples = 0
        self._num_lost = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of faults by reason, for those reasons that occurred."""
        return {r: self._counts[r] for r in get_args(Reason) if self._counts[r] and r not in SKIPPED}

    @property
    def skipped(self) -> dict[str, int]:
        """Number of records that were not wanted, by reason."""
        return {r: self._counts[r] for r in get_args(Reason) if self._counts[r] and r in SKIPPED}

    def add(self, faults: Iterable[Fault], *, num_samples: int) -> None:
        """Counts the faults met while ``num_samples`` samples, those that were skipped included, were tried.

        Raises:
            DataError: More than ``max_bad_fraction`` of all samples tried so far, or every one of them, was lost.
        """
        for fault in faults:
            self._counts[fault.reason] += 1
            if fault.reason in SKIPPED:
                logger.debug("%s", fault)
                num_samples -= fault.lost
                continue
            self._num_lost += fault.lost
            self.recent.append(fault)
            level = logging.WARNING if self._counts[fault.reason] <= _NUM_LOGGED else logging.DEBUG
            logger.log(level, "%s", fault)
        self._num_samples += num_samples
        allowed = max(self.max_bad_fraction * self._num_samples, _NUM_ALWAYS_ALLOWED)
        everything = 0 < self._num_samples <= self._num_lost
        if self._num_lost > allowed or (everything and num_samples > 1):
            raise DataError(
                f"{self._num_lost} of {self._num_samples} samples could not be used "
                f"({', '.join(f'{n} {reason}' for reason, n in self.counts.items())}); "
                f"max_bad_fraction allows {self.max_bad_fraction:g}. The last one: {self.recent[-1]}"
            )
