"""Where every array of a tree lies and what it takes of each device: a table, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Placement:
    """One array.

    Attributes:
        name: its path in the tree, `a/b/c`.
        shape: of the whole.
        spec: the mesh axes that divide each dimension.
        bytes: of the whole.
        bytes_per_device: of the part on one device.
    """

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    bytes_per_device: int


def placements(tree: Any) -> list[Placement]:
    """Say where each array of a tree lies.

    Args:
        tree: `jax.Array` or `jax.ShapeDtypeStruct` leaves, each with a `NamedSharding`.

    Returns:
        One row per array, in the tree's order.
    """
    return [_placement(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def bytes_per_device(tree: Any) -> int:
    """The bytes of a tree's arrays on one device."""
    return sum(row.bytes_per_device for row in placements(tree))


def _placement(path: Any, leaf: Any) -> Placement:
    sharding: NamedSharding = leaf.sharding
    size = leaf.dtype.itemsize
    return Placement(
        name=jax.tree_util.keystr(path, simple=True, separator="/"),
        shape=tuple(leaf.shape),
        spec=sharding.spec,
        bytes=size * math.prod(leaf.shape),
        bytes_per_device=size * math.prod(sharding.shard_shape(tuple(leaf.shape))),
    )
