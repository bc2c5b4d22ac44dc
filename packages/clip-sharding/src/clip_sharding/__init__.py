"""Meshes, partition rules, global batches and multi-process start-up for any JAX model."""

from clip_sharding.batch import BATCH_AXES, batch_readers, batch_sharding, to_global, to_local
from clip_sharding.exchange import exchange, gather_items, gather_rows
from clip_sharding.mesh import MeshConfig, SlicesConfig, make_mesh
from clip_sharding.processes import start_processes
from clip_sharding.rules import PartitionConfig, Rules, constraint, shardings, strategies, strategy
from clip_sharding.table import Placement, bytes_per_device, placements

__all__ = [
    "BATCH_AXES",
    "MeshConfig",
    "PartitionConfig",
    "Placement",
    "Rules",
    "SlicesConfig",
    "batch_readers",
    "batch_sharding",
    "bytes_per_device",
    "constraint",
    "exchange",
    "gather_items",
    "gather_rows",
    "make_mesh",
    "placements",
    "shardings",
    "start_processes",
    "strategies",
    "strategy",
    "to_global",
    "to_local",
]
