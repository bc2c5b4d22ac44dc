"""From each process's rows to one global array: the batch enters the mesh here."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that divide the rows of a batch."""


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading dimension is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Place a tree of host arrays on the mesh, rows divided over `data` and `fsdp`.

    Args:
        batch: numpy arrays `[b_process, ...]` of any dtype: the rows of this process, in order. All processes together
            hold the global batch; none ever sees another's rows.
        mesh: the mesh of all processes.

    Returns:
        The same tree of global `jax.Array` `[b, ...]`, dtypes unchanged.

    Raises:
        ValueError: the global batch does not divide over the devices.
    """
    sharding = batch_sharding(mesh)
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(path: Any, rows: Any) -> jax.Array:
        total = rows.shape[0] * jax.process_count()
        if total % num_shards:
            raise ValueError(
                f"the global batch must divide over data × fsdp = {num_shards} devices; "
                f"{jax.tree_util.keystr(path)} has {total} rows"
            )
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree_util.tree_map_with_path(place, batch)
