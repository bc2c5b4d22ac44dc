"""``tf.train.Example``, parsed and serialised without TensorFlow.

References:
    tensorflow/core/example/{example,feature}.proto and https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clip_data.faults import RecordError

__all__ = ["encode_example", "parse_example"]


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Parses a serialised ``tf.train.Example``.

    Args:
        data: The message's bytes.

    Returns:
        For each feature a list of bytes, of floats or of ints; an unset feature is an empty list.

    Raises:
        RecordError: The bytes are no Example.

    >>> parse_example(encode_example({"key": "7", "width": 32}))
    {'key': [b'7'], 'width': [32]}
    """
    try:
        return _parse_plain(data)
    except (_NotPlainError, IndexError, ValueError, struct.error):  # damage too: the general parser says what it is
        return _parse_any(data)


def encode_example(fields: Mapping[str, Any]) -> bytes:
    """Serialises a ``tf.train.Example`` with the types that img2dataset uses.

    Args:
        fields: bytes, str, int or float, or a sequence of one of them, by name; None is stored as ``b""``.

    Returns:
        The message's bytes.

    Raises:
        TypeError: A value of another type.
    """
    body = b"".join(
        _length_delimited(1, _length_delimited(1, name.encode()) + _length_delimited(2, _encode_feature(name, value)))
        for name, value in fields.items()
    )
    return _length_delimited(1, body)


class _NotPlainError(Exception):
    """A message is not laid out as the usual writers do, though it may be a good one."""


def _parse_plain(data: bytes) -> dict[str, list[Any]]:
    """Parses an Example whose fields come one after the other, in order, with packed numbers, as all writers do.

    This is the inner loop of reading, under the interpreter's lock: lengths below 128 are read where they stand, and
    nothing is copied but values.
    """
    features: dict[str, list[Any]] = {}
    size, position = _length(data, 0, 0x0A)
    end = position + size
    if end != len(data):
        raise _NotPlainError
    while position < end:
        size, position = _length(data, position, 0x0A)
        entry_end = position + size
        name_end = position + 2 + data[position + 1]
        if data[position] != 0x0A or data[position + 1] >= 0x80 or entry_end > end:
            raise _NotPlainError
        name = data[position + 2 : name_end].decode("utf-8")
        size, position = _length(data, name_end, 0x12)
        if position + size != entry_end:
            raise _NotPlainError
        kind = data[position]
        size, position = _length(data, position, kind)
        if position + size != entry_end:
            raise _NotPlainError
        values: list[Any] = []
        if kind == 0x0A:
            while position < entry_end:
                if data[position] == 0x0A and data[position + 1] < 0x80:
                    start = position + 2
                    position = start + data[position + 1]
                else:
                    size, start = _length(data, position, 0x0A)
                    position = start + size
                values.append(data[start:position])
        else:
            size, position = _length(data, position, 0x0A)
            if position + size != entry_end:
                raise _NotPlainError
            if kind == 0x12:
                values.extend(struct.unpack(f"<{size // 4}f", data[position:entry_end]))
                position = entry_end
            elif kind == 0x1A:
                while position < entry_end:
                    value, position = _varint(data, position)
                    values.append(value if value < 1 << 63 else _signed(value))
            else:
                raise _NotPlainError
        if position != entry_end:
            raise _NotPlainError
        features[name] = values
    return features


def _length(data: bytes, position: int, tag: int) -> tuple[int, int]:
    """Returns the length of a field's content, and where it begins."""
    if data[position] != tag:
        raise _NotPlainError
    size = data[position + 1]
    return (size, position + 2) if size < 0x80 else _varint(data, position + 1)


def _parse_any(data: bytes) -> dict[str, list[Any]]:
    """Parses an Example in any of the layouts that protocol buffers allow."""
    features: dict[str, list[Any]] = {}
    try:
        for number, feature_map in _fields(data):
            if number != 1:
                continue
            for number, entry in _fields(_sub(feature_map)):
                if number != 1:
                    continue
                name, values = "", []
                for number, value in _fields(_sub(entry)):
                    if number == 1:
                        name = _sub(value).decode("utf-8")
                    elif number == 2:
                        values = _parse_feature(_sub(value))
                features[name] = values
    except (ValueError, IndexError, struct.error) as error:
        raise RecordError("bad_record", f"not a tf.train.Example ({error})") from error
    return features


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yields (field number, value) of a protobuf message: int for varints, bytes for all else."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position + size > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, data[position : position + size]
        position += size


def _sub(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _parse_feature(data: bytes) -> list[Any]:
    values: list[Any] = []
    for kind, message in _fields(data):
        for number, value in _fields(_sub(message)):
            if number != 1:
                continue
            if kind == 1:
                values.append(_sub(value))
            elif kind == 2:
                values.extend(np.frombuffer(_sub(value), "<f4").tolist())
            elif kind == 3:
                values.extend(_signed(number) for number in ([value] if isinstance(value, int) else _varints(value)))
    return values


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _length_delimited(number: int, data: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(data)) + data


def _encode_feature(name: str, value: Any) -> bytes:
    values: list[Any] = (
        list(value) if isinstance(value, list | tuple | np.ndarray) else [b"" if value is None else value]
    )
    if all(isinstance(v, str | bytes) for v in values):
        strings = [v.encode() if isinstance(v, str) else bytes(v) for v in values]
        return _length_delimited(1, b"".join(_length_delimited(1, v) for v in strings))
    if all(isinstance(v, int | np.integer) for v in values):
        return _length_delimited(3, _length_delimited(1, b"".join(_encode_varint(int(v)) for v in values)))
    if all(isinstance(v, int | float | np.integer | np.floating) for v in values):
        return _length_delimited(2, _length_delimited(1, np.asarray(values, "<f4").tobytes()))
    raise TypeError(f"field {name!r} must be bytes, str, int, float or a sequence of one of them, not {value!r}")
