"""Meshes, partition rules and global batches for any JAX model."""

from clip_sharding.batch import BATCH_AXES, batch_sharding, to_global
from clip_sharding.mesh import MeshConfig, make_mesh
from clip_sharding.rules import Rules, shardings, strategies, strategy

__all__ = [
    "BATCH_AXES",
    "MeshConfig",
    "Rules",
    "batch_sharding",
    "make_mesh",
    "shardings",
    "strategies",
    "strategy",
    "to_global",
]
