"""From three axis sizes to a `jax.sharding.Mesh`; which array goes where is left to `rules`."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlicesConfig:
    """How many slices each mesh axis spans, where slower network joins several slices (or hosts of GPUs).

    Attributes:
        data: of the size of `data`, the factor that lies between slices.
        fsdp: likewise.
        model: likewise.
    """

    data: int = 1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        if wrong := {name: size for name, size in self.sizes.items() if size < 1}:
            raise ValueError(f"a mesh axis spans a positive number of slices; got {wrong}")

    @property
    def sizes(self) -> dict[str, int]:
        """Slices by axis, in mesh order."""
        return {name: getattr(self, name) for name in AXES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis spans; one axis may be -1, "all that remain".

    Attributes:
        data: replicas that see different rows of the batch.
        fsdp: devices that see different rows and also divide every parameter between them.
        model: devices that see the same rows and divide the width of each layer.
        slices: on several slices, which axes lie between them; by default `data` as far as it goes, then `fsdp`, then
            `model`: what communicates least crosses the slower network.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    slices: SlicesConfig | None = None

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

    def resolve(self, num_devices: int, num_slices: int = 1) -> MeshConfig:
        """The same mesh with -1 replaced by what `num_devices` leaves, and every axis' share of the slices.

        Raises:
            ValueError: the axes do not multiply to `num_devices`, or their slices not to `num_slices`.
        """
        fixed = math.prod(size for size in self.sizes.values() if size != -1)
        free = [name for name, size in self.sizes.items() if size == -1]
        if free and num_devices % fixed == 0:
            sizes = {**self.sizes, free[0]: num_devices // fixed}
        elif not free and fixed == num_devices:
            sizes = self.sizes
        else:
            raise ValueError(
                f"the mesh axes must multiply to the number of devices, {num_devices}; "
                f"got {self.sizes}, which make {fixed}"
                + (
                    f" and leave no whole number for {free[0]!r}"
                    if free
                    else f"; set one of them to -1 to use all {num_devices}"
                )
            )
        slices = self.slices
        if slices is None:
            # The devices of a slice are equally many, so that the last axis takes what the others leave.
            data = math.gcd(sizes["data"], num_slices)
            fsdp = math.gcd(sizes["fsdp"], num_slices // data)
            slices = SlicesConfig(data=data, fsdp=fsdp, model=num_slices // data // fsdp)
        _check_slices(slices, sizes, num_slices)
        return MeshConfig(**sizes, slices=slices)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Build a mesh with axes `data`, `fsdp`, `model` over the given devices.

    Args:
        config: axis sizes; by default all devices on `data`.
        devices: what to span; by default every device of every process, in the order that jax's own helpers find best
            for the network inside the slices, and for the one between them.

    Returns:
        A mesh whose axes are all `AxisType.Auto`: the compiler propagates shardings, constraints guide it.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or cannot be laid over the slices.
    """
    devices = jax.devices() if devices is None else devices
    types = (AxisType.Auto,) * len(AXES)
    num_slices = count_slices(devices)
    resolved = (config or MeshConfig()).resolve(len(devices), num_slices)
    sizes, slices = resolved.sizes, (resolved.slices or SlicesConfig()).sizes
    if num_slices == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)
    grid = mesh_utils.create_hybrid_device_mesh(
        [sizes[axis] // slices[axis] for axis in AXES],
        [slices[axis] for axis in AXES],
        devices,
        allow_split_physical_axes=True,
    )
    return Mesh(grid, AXES, axis_types=types)


def count_slices(devices: Sequence[Any]) -> int:
    """On how many slices (or hosts of GPUs, which jax counts as such) devices are.

    Raises:
        ValueError: some slices have more of them than others.
    """
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"every slice must have as many devices as the others; got {dict(sizes)}")
    return len(sizes)


def _check_slices(slices: SlicesConfig, sizes: Mapping[str, int], num_slices: int) -> None:
    spans = math.prod(slices.sizes.values())
    if spans != num_slices:
        raise ValueError(
            f"the axes' slices must multiply to the number of slices, {num_slices}; got {slices.sizes}, "
            f"which make {spans}; leave them out to have them chosen"
        )
    for axis, size in sizes.items():
        if size % slices.sizes[axis]:
            raise ValueError(f"mesh axis {axis!r} of {size} devices does not divide over {slices.sizes[axis]} slices")
