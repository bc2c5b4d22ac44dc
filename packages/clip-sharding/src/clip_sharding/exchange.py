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
    """The rows of all processes, one process after the other; what several read alike is taken once.

    Args:
        rows: `[n, ...]` of any dtype; n may differ between processes.
        mesh: by which the rows were read.

    Returns:
        `[sum of n, ...]`, in every process.
    """
    if jax.process_count() == 1:
        return rows
    parts = _once(_exchange_bytes(np.ascontiguousarray(rows).tobytes()), mesh)
    return np.frombuffer(b"".join(parts), rows.dtype).reshape(-1, *rows.shape[1:])


def gather_items(items: list[Any], mesh: Mesh) -> list[Any]:
    """The same for the items of lists.

    Args:
        items: of JSON, one per row or as many as there are; n may differ between processes.
        mesh: by which the rows were read.
    """
    return [item for part in _once(exchange(items), mesh) for item in part]


def _once(parts: list[Any], mesh: Mesh) -> list[Any]:
    """Of each part of the batch, what the first process that reads it has."""
    index, _ = batch_readers(mesh)
    by_reader: dict[int, Any] = {}
    for reader, part in zip(exchange(index), parts, strict=True):
        by_reader.setdefault(reader, part)
    return [by_reader[reader] for reader in sorted(by_reader)]


def _exchange_bytes(content: bytes) -> list[bytes]:
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    # A power of two, so that few programs are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(everyone, sizes, strict=True)]
