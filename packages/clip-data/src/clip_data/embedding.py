"""Vectors that a record holds beside its picture, such as another model's embeddings, however they are stored."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_data.faults import RecordError

__all__ = ["read_embedding"]

_NPY = b"\x93NUMPY"


def read_embedding(fields: Mapping[str, Any], name: str, width: int) -> np.ndarray:
    """Reads one vector.

    Args:
        fields: Of a record. The vector is a list of numbers, as in Parquet, TFRecord or JSON; the bytes of a ``.npy``
            file, as in a WebDataset; or bare float32 or float16, little-endian.
        name: Of the field.
        width: Numbers that it must hold.

    Returns:
        float32 [width].

    Raises:
        RecordError: It is missing, of another length, zero, or not finite.

    >>> read_embedding({"teacher": [3, 4]}, "teacher", 2)
    array([3., 4.], dtype=float32)
    """
    value = fields.get(name)
    if value is None or (isinstance(value, bytes | str) and not value):
        raise RecordError("missing_embedding", f"nothing in {name!r}; the fields are {', '.join(fields)}")
    try:
        vector = _decode(value, width)
    except (TypeError, ValueError) as error:
        raise RecordError("bad_record", f"{name} holds no vector ({error})") from error
    if vector.size != width:
        raise RecordError("bad_record", f"{name} must hold {width} numbers; it holds {vector.size}")
    if not np.isfinite(vector).all() or not vector.any():
        raise RecordError("bad_record", f"{name} must be finite and not zero")
    return vector


def _decode(value: Any, width: int) -> np.ndarray:
    if isinstance(value, bytes):
        if value.startswith(_NPY):
            array = _read_npy(value, width)
        elif len(value) in (2 * width, 4 * width):
            array = np.frombuffer(value, "<f2" if len(value) == 2 * width else "<f4")
        else:
            raise ValueError(f"{len(value)} bytes are not {width} numbers of float32 or float16, and no .npy file")
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{value!s:.40}… is no list of numbers")
    return array.astype(np.float32).reshape(-1)


def _read_npy(data: bytes, width: int) -> np.ndarray:
    """Reads a ``.npy`` file after judging its header: numpy would take the memory that it asks for."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, _, dtype = read_header(file)
    except Exception as error:  # the header is an expression of Python, whose parser raises what it likes
        raise ValueError(f"no .npy file of numbers: {type(error).__name__}") from error
    if math.prod(shape) != width or dtype.kind not in "fiu" or len(data) - file.tell() != width * dtype.itemsize:
        raise ValueError(f"a .npy file of {dtype} {list(shape)}, with {len(data) - file.tell()} bytes of data")
    return np.frombuffer(data, dtype, offset=file.tell())
