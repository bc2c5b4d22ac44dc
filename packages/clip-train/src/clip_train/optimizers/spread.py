"""Arrays of blocks, divided over the devices of some mesh axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Spread:
    """Where blocks go.

    Attributes:
        mesh: the devices; `None`: each has all blocks.
        axes: of the mesh, over which the first axis of an array of blocks is divided.
    """

    mesh: Mesh | None
    axes: tuple[str, ...]

    @property
    def num(self) -> int:
        """In how many parts the blocks are divided."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self.axes)

    def hold(self, arrays: Any) -> Any:
        """A tree of arrays `[n, …]`, n a multiple of `num`, kept divided."""
        if self.mesh is None or self.num == 1:
            return arrays
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axes))
        return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, sharding), arrays)

    def map(self, function: Callable[[jax.Array], Any], matrices: jax.Array) -> Any:
        """A function of many matrices `[n, d, d]`, each device on its own part of them.

        Nothing crosses, and no device waits for another's iterations.
        """
        if self.mesh is None or self.num == 1:
            return function(matrices)
        spec = PartitionSpec(self.axes)
        fill = jnp.broadcast_to(jnp.eye(matrices.shape[-1]), (-len(matrices) % self.num, *matrices.shape[1:]))
        filled = self.hold(jnp.concatenate([matrices, fill]))
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)(filled)
        return jax.tree.map(lambda array: array[: len(matrices)], mapped)
