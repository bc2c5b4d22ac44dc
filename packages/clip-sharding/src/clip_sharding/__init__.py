"""Meshes, partition rules, global batches and multi-process start-up for any JAX model."""

from clip_sharding.batch import BATCH_AXES, batch_readers, batch_sharding, to_global, to_local
from clip_sharding.chips import CHIPS, Chip, chip_of
from clip_sharding.exchange import exchange, gather_items, gather_rows
from clip_sharding.flops import count_flops
from clip_sharding.mesh import MeshConfig, SlicesConfig, count_slices, make_mesh
from clip_sharding.plan import DoesNotFitError, Plan, plan
from clip_sharding.processes import start_processes
from clip_sharding.roofline import Roofline
from clip_sharding.rules import (
    PartitionConfig,
    Rules,
    constraint,
    dividing_size,
    shardings,
    strategies,
    strategy,
)
from clip_sharding.table import Placement, bytes_per_device, placements
from clip_sharding.topology import Topology, find_topology

__all__ = [
    "BATCH_AXES",
    "CHIPS",
    "Chip",
    "DoesNotFitError",
    "MeshConfig",
    "PartitionConfig",
    "Placement",
    "Plan",
    "Roofline",
    "Rules",
    "SlicesConfig",
    "Topology",
    "batch_readers",
    "batch_sharding",
    "bytes_per_device",
    "chip_of",
    "constraint",
    "count_flops",
    "count_slices",
    "dividing_size",
    "exchange",
    "find_topology",
    "gather_items",
    "gather_rows",
    "make_mesh",
    "placements",
    "plan",
    "shardings",
    "start_processes",
    "strategies",
    "strategy",
    "to_global",
    "to_local",
]
