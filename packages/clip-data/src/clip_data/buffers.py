"""Memory of batches, used again once nobody holds the batch.

Fresh memory costs a page fault every 4 KB, which for a batch of images is a good part of the time to decode them.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from typing import IO, Any, NamedTuple

import numpy as np

from clip_data.config import DataConfig
from clip_data.schedule import BatchShape

__all__ = ["EMBEDDING", "Buffers", "Layout", "SharedMemory"]

EMBEDDING = "embeddings/"
"""Before the names of the arrays that are not fields of a batch, but entries of its ``embeddings``."""

_ALIGNMENT = 64


class Layout(NamedTuple):
    """The arrays of a batch's images and embeddings in one run of memory.

    Args:
        arrays: For each its name, shape, dtype and first byte.
        size: Bytes of all.
    """

    arrays: tuple[tuple[str, tuple[int, ...], str, int], ...]
    size: int

    @staticmethod
    def of(config: DataConfig, shape: BatchShape) -> Layout:
        """Lays out the arrays that a config asks for.

        Args:
            config: Of the pipeline.
            shape: Of a process's batch.
        """
        num_rows, length = shape
        arrays_of: dict[str, tuple[tuple[int, ...], str]]
        if not config.has_images:
            arrays_of = {}
        elif config.resize_mode == "naflex":
            arrays_of = {
                "image": ((num_rows, length, config.patch_size**2 * 3), "u1"),
                "pixel_attention_mask": ((num_rows, length), "i4"),
                "spatial_shapes": ((num_rows, 2), "i4"),
            }
        else:
            arrays_of = {"image": ((num_rows, *config.image_shape, 3), "u1")}
        arrays_of |= {EMBEDDING + name: ((num_rows, width), "f4") for name, width in config.embeddings.items()}
        arrays, size = [], 0
        for name, (dims, dtype) in arrays_of.items():
            arrays.append((name, dims, dtype, size))
            size += -(-math.prod(dims) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
        return Layout(tuple(arrays), size)

    def views(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays by name.

        Args:
            memory: uint8 [size].
        """
        return {
            name: memory[first : first + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
            for name, shape, dtype, first in self.arrays
        }


class Buffers:
    """Runs of memory that come back when the last array on them is gone.

    Args:
        size: Bytes of each.
        num_kept: Of those that are free.

    >>> buffers = Buffers(4096, num_kept=1)
    >>> array = buffers.take()
    >>> address = array.ctypes.data
    >>> del array
    >>> buffers.take().ctypes.data == address
    True
    """

    def __init__(self, size: int, *, num_kept: int):
        self._size = size
        self._free: deque[np.ndarray] = deque(maxlen=num_kept)

    def take(self) -> np.ndarray:
        """Returns uint8 [size], of any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._size, np.uint8)
        lease = _Lease(memory)
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return np.asarray(lease)


class _Lease:
    """Stands between a run of memory and the arrays on it: all of them refer to it, and numpy never skips it."""

    def __init__(self, memory: np.ndarray):
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__


class SharedMemory:
    """Slots of memory that several processes see. Its file has no name: it is gone when they are.

    Args:
        size: Bytes of each slot.
        num_slots: Their number.

    Raises:
        OSError: There is not so much memory to share, nor so much room for temporary files.
    """

    def __init__(self, size: int, num_slots: int):
        self._size = size
        self._file = _temporary_file(max(size * num_slots, 1))
        weakref.finalize(self, self._file.close)
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._free = deque(range(num_slots))

    @property
    def descriptor(self) -> int:
        """Of the file, for a process that inherits it."""
        return self._file.fileno()

    @property
    def num_free(self) -> int:
        """Slots that may be taken."""
        return len(self._free)

    def take(self) -> tuple[int, np.ndarray]:
        """Returns the number of a free slot and its memory, uint8 [size]; it is free again when that is gone."""
        slot = self._free.popleft()
        lease = _Lease(slot_memory(self._map, slot, self._size))
        weakref.finalize(lease, self._free.append, slot).atexit = False
        return slot, np.asarray(lease)


def slot_memory(shared: Any, slot: int, size: int) -> np.ndarray:
    """Returns the memory of a slot, uint8 [size].

    Args:
        shared: The map of all slots.
        slot: Its number.
        size: Bytes of a slot.
    """
    return np.frombuffer(shared, np.uint8, count=size, offset=slot * size)


def _temporary_file(size: int) -> IO[bytes]:
    """Opens a file of memory, or, where that is scarce as in many containers, of the disk."""
    for folder in (*filter(os.path.isdir, ["/dev/shm"]), None):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it outlives this
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # Takes the room now: memory that is promised and not there kills a process when it is written to.
                os.posix_fallocate(file.fileno(), 0, size)
            return file
        except OSError:
            file.close()
            if folder is None:
                raise
    raise AssertionError
