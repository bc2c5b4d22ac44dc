"""What the processes of a run tell each other besides arrays on the mesh: a few values, and rows of host arrays.

All of these are collective: every process calls them, in the same order.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clip_sharding.batch import batch_readers


def exchange(value: Any) -> list[Any]:
    """Tell all processes a value and hear theirs.

    Args:
        value: of JSON: the same or another one in each process.

    Returns:
        The values of all processes, in the processes' order.
    """
    if jax.process_count() == 1:
        return [value]
    return [json.loads(text) for text in _exchange_bytes(json.dumps(value).encode())]


def gather_rows(rows: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The rows of all processes, one process after the other; what several hold alike is taken once.

    Args:
        rows: `[n, ...]` of any dtype; n may differ between processes.
        mesh: by which the rows were read.

    Returns:
        `[sum of n, ...]`, in every process.
    """
    index, count = batch_readers(mesh)
    if count == 1:
        return rows
    parts: dict[int, bytes] = {}
    for reader, content in zip(exchange(index), _exchange_bytes(np.ascontiguousarray(rows).tobytes()), strict=True):
        parts.setdefault(reader, content)
    joined = b"".join(parts[reader] for reader in range(count))
    return np.frombuffer(joined, rows.dtype).reshape(-1, *rows.shape[1:])


def _exchange_bytes(content: bytes) -> list[bytes]:
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    # A power of two, so that few programs are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(everyone, sizes, strict=True)]
