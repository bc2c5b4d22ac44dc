"""TFRecord files of ``tf.train.Example``, read and written without TensorFlow.

A record is ``uint64 length, uint32 crc(length), bytes data, uint32 crc(data)``, little-endian, with masked CRC-32C. A
flipped byte in the data therefore loses one record, and one in a length loses what follows it.

References:
    https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c

from clip_data.example import encode_example, parse_example
from clip_data.faults import Fault, RecordError, empty_shard
from clip_data.sources import Shard, open_shard

__all__ = ["TFRecordReader", "index_tfrecord", "read_example", "write_examples"]

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")


class TFRecordReader:
    """An open TFRecord file of Examples, as ``records.Reader`` describes it.

    Args:
        path: Where it is.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: str):
        self._shard = open_shard(path)
        self._entries, self.fault = index_tfrecord(self._shard)

    def __len__(self) -> int:
        return len(self._entries)

    def offset(self, row: int) -> int:
        """Returns the byte offset of a record's data."""
        return self._entries[row][0]

    def read(self, row: int) -> dict[str, Any]:
        """Returns a record's fields."""
        return read_example(self._shard, self._entries[row])

    def read_stored(self, row: int) -> bytes:
        """Returns a record's bytes, whose checksum is right."""
        return _read_stored(self._shard, self._entries[row])


def index_tfrecord(shard: Shard) -> tuple[list[tuple[int, int]], Fault | None]:
    """Finds the records of a shard by hopping from length to length.

    Args:
        shard: An open shard.

    Returns:
        The offset and length of each record's data, in bytes, and what ended the walk early, if anything did.
    """
    entries: list[tuple[int, int]] = []
    offset = 0
    if not shard.size:
        return entries, empty_shard(shard.path)
    while offset < shard.size:
        header = shard.read_at(offset, _HEADER.size)
        if len(header) < _HEADER.size:
            return entries, _cut_short(shard, offset, len(entries))
        length, crc = _HEADER.unpack(header)
        if _masked_crc(header[:8]) != crc:
            detail = f"the length's checksum is wrong after {len(entries)} records: not a TFRecord, or a damaged one"
            return entries, Fault(shard=shard.path, offset=offset, reason="bad_length", detail=detail, lost=False)
        end = offset + _HEADER.size + length + _CRC.size
        if end > shard.size:
            return entries, _cut_short(shard, offset, len(entries))
        entries.append((offset + _HEADER.size, length))
        offset = end
    return entries, None


def read_example(shard: Shard, entry: tuple[int, int]) -> dict[str, Any]:
    """Reads one record and parses its Example.

    Args:
        shard: An open shard.
        entry: Offset and length, as from ``index_tfrecord``.

    Returns:
        As ``parse_example``, with lists of one element replaced by that element.

    Raises:
        RecordError: The checksum is wrong, or the bytes are no Example.
    """
    fields = parse_example(_read_stored(shard, entry))
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def write_examples(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Writes one TFRecord file.

    Args:
        path: Where to; an existing file is replaced.
        examples: One mapping for each record, as ``encode_example`` takes it.

    Returns:
        The number of records written.
    """
    count = 0
    with open(path, "wb") as file:
        for count, fields in enumerate(examples, start=1):  # noqa: B007
            data = encode_example(fields)
            length = struct.pack("<Q", len(data))
            file.write(length + _CRC.pack(_masked_crc(length)) + data + _CRC.pack(_masked_crc(data)))
    return count


def _read_stored(shard: Shard, entry: tuple[int, int]) -> bytes:
    offset, length = entry
    stored = shard.read_at(offset, length + _CRC.size)
    data = stored[:length]
    if len(stored) < length + _CRC.size or _masked_crc(data) != _CRC.unpack_from(stored, length)[0]:
        raise RecordError("bad_checksum", f"the checksum of {length} bytes of data is wrong")
    return data


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _cut_short(shard: Shard, offset: int, num_records: int) -> Fault:
    detail = f"the file ends inside a record, after {num_records} whole ones"
    return Fault(shard=shard.path, offset=offset, reason="shard_cut_short", detail=detail, lost=False)
