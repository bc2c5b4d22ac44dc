"""Which records are wanted, by what their metadata say.

A record that is not wanted is no fault: it is replaced like one, and counted apart.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from clip_data.faults import RecordError
from clip_data.picture import picture_header
from clip_data.sources import open_shard

__all__ = ["Filter", "filters_identity", "make_predicate"]

Value = str | int | float | bool

_DERIVED = ("smallest_side", "aspect_ratio")
_UIDS = np.dtype("u8,u8")
_UIDS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One condition on one column of a record's metadata; a record must meet all that are given.

    Two columns are there without being stored: ``smallest_side`` in pixels and ``aspect_ratio``, the longer side over
    the shorter one, of ``original_width`` and ``original_height``, else of ``width`` and ``height``, else of the image.

    Args:
        column: Its name.
        min: Least number that is wanted.
        max: Largest number that is wanted.
        one_of: Values that are wanted; numbers in text are compared as text.
        none_of: Values that are not.
        uids: A ``.npy`` file of wanted uids, sorted, of dtype ``"u8,u8"``: the halves of 32 hexadecimal digits, as
            DataComp publishes its subsets.
        missing: What becomes of records without a value there: ``"drop"`` or ``"keep"``.

    Raises:
        ValueError: No condition is given, or a value is outside what is said above.

    >>> wanted = make_predicate([Filter(column="similarity", min=0.28), Filter(column="lang", one_of=("en", "fr"))])
    >>> wanted({"similarity": 0.31, "lang": b"en"}, b"")
    >>> wanted({"similarity": 0.31, "lang": b"de"}, b"")
    "lang is 'de'"
    """

    column: str
    min: float | None = None
    max: float | None = None
    one_of: tuple[Value, ...] | None = None
    none_of: tuple[Value, ...] | None = None
    uids: str | None = None
    missing: Literal["drop", "keep"] = "drop"

    def __post_init__(self):
        for name in ("one_of", "none_of"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.column or not isinstance(self.column, str):
            raise ValueError(f"a filter's column must be a field's name, not {self.column!r}")
        for name in ("min", "max"):
            bound = getattr(self, name)
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int | float)):
                raise ValueError(f"{name} of {self.column!r} must be a number, not {bound!r}")
        for name in ("one_of", "none_of"):
            values = getattr(self, name)
            if values is not None and not (
                isinstance(values, tuple) and all(isinstance(value, str | int | float) for value in values)
            ):
                raise ValueError(f"{name} of {self.column!r} must be a list of texts or numbers, not {values!r}")
        if self.uids is not None and not isinstance(self.uids, str):
            raise ValueError(f"uids of {self.column!r} must be the path of a .npy file, not {self.uids!r}")
        if all(value is None for value in (self.min, self.max, self.one_of, self.none_of, self.uids)):
            raise ValueError(f"the filter on {self.column!r} needs one of min, max, one_of, none_of, uids")
        if any(bound is not None and math.isnan(bound) for bound in (self.min, self.max)):
            raise ValueError(f"the bounds of {self.column!r} must be numbers, not NaN")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not exceed max for {self.column!r}; they are {self.min:g} and {self.max:g}")
        if self.missing not in ("drop", "keep"):
            raise ValueError(f"missing must be drop or keep, not {self.missing!r}")


Predicate = Callable[[Mapping[str, Any], bytes], str | None]
"""Of a record's metadata and image bytes: None where it is wanted, else the reason why not, in words."""


def make_predicate(filters: Sequence[Filter]) -> Predicate:
    """Joins filters to one predicate.

    Args:
        filters: All of which a record must meet.

    Raises:
        OSError: A file of uids cannot be read.
        ValueError: It holds no sorted uids.
    """
    subsets = [None if item.uids is None else _open_uids(item.uids) for item in filters]

    def predicate(metadata: Mapping[str, Any], image: bytes) -> str | None:
        for item, subset in zip(filters, subsets, strict=True):
            value = _value(item.column, metadata, image)
            if value is None:
                if item.missing == "drop":
                    return f"no {item.column}; the fields are {', '.join(metadata)}"
            elif not _meets(item, subset, value):
                return f"{item.column} is {value!r:.80}"
        return None

    return predicate


def filters_identity(filters: Sequence[Filter]) -> str:
    """Returns a word that differs where the filters, or the uids that they name, differ; ``""`` for none."""
    if not filters:
        return ""
    described: list[Any] = []
    for item in filters:
        # Where the file of uids is does not matter, what it holds does.
        described.append([getattr(item, field.name) for field in fields(item) if field.name != "uids"])
        described.append(None if item.uids is None else _open_uids(item.uids).digest)
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=6).hexdigest()


def _value(column: str, metadata: Mapping[str, Any], image: bytes) -> Any:
    """Returns a column's value, or None where there is none."""
    value = metadata.get(column)
    if value is None and column in _DERIVED and column not in metadata:
        sides = _sides(metadata, image)
        if sides is None:
            return None
        return min(sides) if column == "smallest_side" else max(sides) / min(sides)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    is_nothing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return None if is_nothing else value


def _sides(metadata: Mapping[str, Any], image: bytes) -> tuple[float, float] | None:
    for prefix in ("original_", ""):
        sides = [_number(metadata.get(f"{prefix}{side}")) for side in ("width", "height")]
        if all(side is not None and side > 0 for side in sides):
            return sides[0], sides[1]  # pyright: ignore[reportReturnType]
    try:
        header = picture_header(image)
    except RecordError:  # its decoder will report the picture, if anything does
        return None
    return (header.width, header.height) if header.width and header.height else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _meets(item: Filter, subset: _Uids | None, value: Any) -> bool:
    if item.min is not None or item.max is not None:
        number = _number(value)
        if number is None:
            return item.missing == "keep"
        if (item.min is not None and number < item.min) or (item.max is not None and number > item.max):
            return False
    if item.one_of is not None and not _is_among(value, item.one_of):
        return False
    if item.none_of is not None and _is_among(value, item.none_of):
        return False
    return subset is None or value in subset


def _is_among(value: Any, values: tuple[Value, ...]) -> bool:
    return value in values or (isinstance(value, str) and value in map(str, values))


class _Uids:
    """A sorted file of uids, gone through once and then searched where it lies."""

    def __init__(self, array: np.ndarray):
        self._array = array
        digest, self.is_sorted = hashlib.blake2b(digest_size=6), True
        for first in range(0, len(array), _UIDS_AT_ONCE):
            part = array[first : first + _UIDS_AT_ONCE + 1]  # with the first of the next part
            high, low = part["f0"], part["f1"]
            rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] >= low[:-1]))
            self.is_sorted = self.is_sorted and bool(rises.all())
            digest.update(part[:_UIDS_AT_ONCE].tobytes())
        self.digest = f"{len(array)}:{digest.hexdigest()}"

    def __contains__(self, uid: Any) -> bool:
        try:
            wanted = (int(uid[:16], 16), int(uid[16:32], 16))
        except (TypeError, ValueError):  # no uid
            return False
        index = bisect.bisect_left(self._array, wanted, key=np.void.item)  # pyright: ignore[reportArgumentType]
        return index < len(self._array) and self._array[index].item() == wanted


@functools.lru_cache(maxsize=8)
def _open_uids(path: str) -> _Uids:
    try:
        if "://" in path:
            shard = open_shard(path)
            array = np.load(io.BytesIO(shard.read_at(0, shard.size)), allow_pickle=False)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file of uids: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != _UIDS or not len(array):
        raise ValueError(f"{path} must hold uids as one dimension of dtype 'u8,u8', not {_describe(array)}")
    uids = _Uids(array)
    if not uids.is_sorted:
        raise ValueError(f"the uids of {path} must be sorted: numpy.sort(uids) does it")
    return uids


def _describe(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
