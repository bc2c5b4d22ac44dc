"""From three axis sizes to a `jax.sharding.Mesh`; which array goes where is left to `rules`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis spans; one axis may be -1, "all that remain".

    Attributes:
        data: replicas that see different rows of the batch.
        fsdp: devices that see different rows and also divide every parameter between them.
        model: devices that see the same rows and divide the width of each layer.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below 1 other than a single -1."""
        sizes = self.sizes
        wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        if wrong:
            raise ValueError(f"a mesh axis is a positive number of devices, or -1 for all that remain; got {wrong}")
        if sum(size == -1 for size in sizes.values()) > 1:
            raise ValueError(f"only one mesh axis may be -1 (all devices that remain); got {sizes}")

    @property
    def sizes(self) -> dict[str, int]:
        """The axis sizes by name, in mesh order."""
        return {name: getattr(self, name) for name in AXES}

    def resolve(self, num_devices: int) -> MeshConfig:
        """The same mesh with -1 replaced by what `num_devices` leaves.

        Raises:
            ValueError: the axes do not multiply to `num_devices`.
        """
        fixed = math.prod(size for size in self.sizes.values() if size != -1)
        free = [name for name, size in self.sizes.items() if size == -1]
        if free and num_devices % fixed == 0:
            return dataclasses.replace(self, **{free[0]: num_devices // fixed})
        if not free and fixed == num_devices:
            return self
        raise ValueError(
            f"the mesh axes must multiply to the number of devices, {num_devices}; got {self.sizes}, which make {fixed}"
            + (
                f" and leave no whole number for {free[0]!r}"
                if free
                else f"; set one of them to -1 to use all {num_devices}"
            )
        )


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Build a mesh with axes `data`, `fsdp`, `model` over the given devices.

    Args:
        config: axis sizes; by default all devices on `data`.
        devices: what to span; by default every device of every process, in the order that jax's own helper finds best.

    Returns:
        A mesh whose axes are all `AxisType.Auto`: the compiler propagates shardings, constraints guide it.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    resolved = (config or MeshConfig()).resolve(len(devices))
    sizes = tuple(resolved.sizes.values())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
