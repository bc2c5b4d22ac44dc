"""Files of named tensors, mapped into memory: safetensors, and NumPy's npz."""

from __future__ import annotations

import json
import math
import mmap
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The dtypes of safetensors that files of weights hold."""


class Place(NamedTuple):
    """Where a tensor is.

    Args:
        path: of the file.
        name: that it has there.
        dtype: of its elements.
        shape: its dims.
        offset: of its first byte. None: it is compressed, a member of an npz.
        order: ``C``, or ``F`` where the first dim varies fastest.
    """

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int | None
    order: str = "C"


class TensorFiles(Mapping[str, Place]):
    """Tensors by name, in one or several files; their bytes are read when they are looked at, and not kept.

    Args:
        places: of the tensors.
    """

    def __init__(self, places: Mapping[str, Place]):
        self._places = dict(places)
        self._maps: dict[Path, mmap.mmap] = {}

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The dims of every tensor."""
        return {name: place.shape for name, place in self._places.items()}

    def select(self, names: Mapping[str, str]) -> TensorFiles:
        """Returns some of the tensors under other names: theirs by the new one."""
        return TensorFiles({new: self._places[old] for new, old in names.items()})

    def view(self, name: str) -> np.ndarray:
        """Returns a tensor, read-only, backed by its file where it is not compressed."""
        place = self._places[name]
        if place.offset is None:
            with np.load(place.path) as archive:
                return archive[place.name].view(place.dtype)
        flat = np.frombuffer(self._map(place.path), place.dtype, math.prod(place.shape), place.offset)
        return flat.reshape(place.shape, order=place.order)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def release(self, name: str) -> None:
        """Gives the memory back that looking at a tensor has taken; it can be looked at again."""
        place = self._places[name]
        if place.offset is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = place.offset - place.offset % mmap.PAGESIZE
        length = place.offset + math.prod(place.shape) * place.dtype.itemsize - start
        if length:
            self._map(place.path).madvise(mmap.MADV_DONTNEED, start, length)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]


def open_safetensors(paths: Iterable[Path]) -> TensorFiles:
    """Opens safetensors files as one.

    Args:
        paths: of the files.

    Returns:
        Their tensors.

    Raises:
        ValueError: a file is cut short, is no safetensors file, or holds a dtype that weights do not have, or a tensor
            of more or fewer bytes than its shape needs.
    """
    places: dict[str, Place] = {}
    for path in paths:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{path} must be a safetensors file; its header does not fit in its {size} bytes.")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise ValueError(f"{path} must be a safetensors file; its header is not JSON.") from error
        if not isinstance(header, dict):
            raise ValueError(f"{path} must be a safetensors file; its header is no JSON object.")
        header.pop("__metadata__", None)
        for name, entry in header.items():
            places[name] = _place(path, name, entry, 8 + length, size)
    return TensorFiles(places)


def _place(path: Path, name: str, entry: Any, start: int, size: int) -> Place:
    """Reads one entry of a safetensors header, whose offsets count from ``start`` in a file of ``size`` bytes."""
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a safetensors file, whose header gives dtype, shape and data_offsets of each tensor; "
            f"of {name} it gives {entry}."
        ) from error
    if code not in DTYPES:
        raise ValueError(f"{name} in {path} must be of {', '.join(DTYPES)}; got {code}.")
    needed = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != needed or min(begin, *shape, 0) < 0:
        raise ValueError(
            f"{name} in {path}, {code} {list(shape)}, must have {needed} bytes; its data_offsets are [{begin}, {end}]."
        )
    if start + end > size:
        raise ValueError(f"{path} is cut short: {name} ends at byte {start + end}, the file at {size}.")
    return Place(path, name, DTYPES[code], shape, start + begin)


def open_npz(path: Path) -> TensorFiles:
    """Opens an npz file.

    Args:
        path: of the file.

    Returns:
        Its arrays. Those of two-byte raw elements, as NumPy writes bfloat16, are taken as bfloat16.

    Raises:
        ValueError: it is no npz file.
    """
    places: dict[str, Place] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, is_fortran, dtype = read_header(stream)
                    header_length = stream.tell()
                offset = None
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(member.header_offset + 26)  # the lengths of name and extra field end the local header
                    offset = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header_length
                if dtype == np.dtype("V2"):
                    dtype = np.dtype(jnp.bfloat16)
                name = member.filename.removesuffix(".npy")
                places[name] = Place(path, name, dtype, shape, offset, "CF"[is_fortran])
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} must be an npz file of arrays; it could not be read ({error}).") from error
    return TensorFiles(places)
