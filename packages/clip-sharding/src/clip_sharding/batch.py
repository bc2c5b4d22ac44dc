"""From each process's rows to one global array and back: the batch enters the mesh here."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that divide the rows of a batch."""


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading dimension is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.cache
def batch_readers(mesh: Mesh) -> tuple[int, int]:
    """Which part of a global batch this process reads: its number among the parts, and how many there are.

    A process reads the rows of its own devices. Processes that the mesh joins along `model` only hold the same rows:
    each of them reads them, and has the same number.

    Returns:
        `(index, count)`; with neither `model` across processes nor several of them, the process's own number and count.

    Raises:
        ValueError: two processes share some rows and not all, or one has more than another.
    """
    grid = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(grid):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(mine)) for mine in rows.values()})
    if sum(map(len, parts)) != len(grid) or len(set(map(len, parts))) > 1:
        held = "; ".join(f"process {process}: {sorted(mine)}" for process, mine in sorted(rows.items()))
        raise ValueError(
            "the processes must divide the rows of a batch into equal parts, or share whole ones; over the mesh "
            f"{dict(mesh.shape)} they hold rows {held}; let `model` divide the devices of a process, or be a multiple "
            "of them"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Place a tree of host arrays on the mesh, rows divided over `data` and `fsdp`.

    Args:
        batch: numpy arrays `[b_process, ...]` of any dtype: the rows that this process reads, in order, as many as
            every other. All processes together hold the global batch; none ever sees another's rows.
        mesh: the mesh of all processes.

    Returns:
        The same tree of global `jax.Array` `[b, ...]`, dtypes unchanged.

    Raises:
        ValueError: the global batch does not divide over the devices.
    """
    sharding = batch_sharding(mesh)
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    _, num_readers = batch_readers(mesh)

    def place(path: Any, rows: Any) -> jax.Array:
        total = rows.shape[0] * num_readers
        if total % num_shards:
            raise ValueError(
                f"the global batch must divide over data × fsdp = {num_shards} devices; "
                f"{jax.tree_util.keystr(path)} has {total} rows"
            )
        return jax.make_array_from_process_local_data(sharding, rows, (total, *rows.shape[1:]))

    return jax.tree_util.tree_map_with_path(place, batch)


def to_local(array: jax.Array) -> np.ndarray:
    """The rows of a global array that this process holds, in their order: what `to_global` was given.

    Args:
        array: `[b, ...]`, divided along its rows only.

    Returns:
        `[b_process, ...]`, of the same dtype.
    """
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
