"""What can be wrong with the data: the words for it.

Everything that reads data reports a ``Fault`` instead of dying or keeping silent. Who replaces a lost sample, and by
which one, is decided in ``order`` and done in ``preparer``; when there are too many, ``fault_log`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["REASONS", "SKIPPED", "DataError", "Fault", "Reason", "RecordError", "empty_shard"]

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
    "wrong_count",  # it holds more records than its _stats.json states; the others are not read
    "duplicate_key",  # kept; of adjacent tar members of one name, the first
    "filtered",  # not wanted, by a filter or the transform
    "null_image",  # a row that says itself that it has no image, as img2dataset writes failed downloads
]

REASONS: tuple[Reason, ...] = get_args(Reason)
"""The same, to be gone through."""

SKIPPED: frozenset[Reason] = frozenset({"filtered", "null_image"})
"""Reasons that are no fault of the data: replaced like one, counted apart, and without a bound."""


class DataError(RuntimeError):
    """The data are too damaged to go on with."""


class RecordError(ValueError):
    """One record, or the rest of one shard, cannot be used.

    Args:
        reason: One of the words of ``Reason``.
        detail: What was seen, in words.
        key: The record's key, where it is known.
    """

    def __init__(self, reason: Reason, detail: str, *, key: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
        self.key = key


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
        key = f", key {self.key if self.key.isprintable() else repr(self.key)}" if self.key else ""
        return f"{self.shard}{place}{key}: {self.reason}: {self.detail}"


def empty_shard(path: str) -> Fault:
    """Returns the fault of a shard without a byte."""
    return Fault(shard=path, reason="empty_shard", detail="the file is empty", lost=False)
