"""Devices to compile for, by name: TPU slices that nobody here owns, the processor, the GPU that is present."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
from typing import Any

import jax
from jax.experimental import topologies

from clip_sharding.chips import CHIPS, Chip, chip_of

_NAME = re.compile(r"(?P<chip>[a-z0-9]+)(?::(?P<shape>\d+(x\d+)*)|-(?P<count>\d+)(x(?P<slices>\d+))?)?")
_FORMS = "a TPU slice such as v5e:16x16 or v5e-256, several such as v5e-256x2, cpu:8, or gpu"
# The largest slice that is one machine, and the chips of a machine of a larger one, by the dimensions of the network.
_HOST_SHAPES = {2: (2, 2), 3: (2, 2, 1)}
# Where the number in `v4-128` is of cores, of which a chip has two.
_NAMED_BY_CORES = ("v3", "v4", "v5p", "tpu7x")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a program can be compiled for.

    Attributes:
        name: as it was asked for.
        devices: jax's, or the compiler's descriptions of them.
        chip: the published peaks; None where there are none.
        platform: `tpu`, `gpu` or `cpu`.
        num_slices: that the devices are on.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    platform: str
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        """Chips, of which some hold two devices."""
        return len(self.devices) // (self.chip.devices if self.chip else 1)

    @property
    def memory(self) -> int | None:
        """Bytes of one device; None where they are not known."""
        if self.platform == "gpu":
            return (self.devices[0].memory_stats() or {}).get("bytes_limit")
        return self.chip.memory // self.chip.devices if self.chip else None


def find_topology(name: str) -> Topology:
    """The devices that a name stands for.

    Args:
        name: `v5e:16x16` (also v3, v4, v5p, v6e, tpu7x), as the cloud's accelerator types count them `v5e-256`,
            `v4-128`; two such slices, `v5e:16x16x2` or `v5e-256x2`; `cpu:8`, processor devices; `gpu`, the ones of this
            machine.

    Raises:
        ValueError: the name stands for nothing, or for a shape that there is not.
        ImportError: the TPU compiler is not installed.
    """
    match = _NAME.fullmatch(name)
    known = {chip.name: chip for chip in CHIPS.values() if chip.device_kind.startswith("TPU")}
    if name == "gpu":
        return _gpu(name)
    if match is not None and match["chip"] in CHIPS.keys() - known.keys():
        raise ValueError(f"a program for a GPU is compiled on a machine that has one, as 'gpu'; got {name!r}")
    if match is not None and match["chip"] == "cpu":
        number = match["shape"] or match["count"] or "1"
        if not number.isdigit() or int(number) < 1 or match["slices"]:
            raise ValueError(f"processor devices are a number of them, such as cpu:8; got {name!r}")
        return _cpu(name, int(number))
    if match is None or match["chip"] not in known:
        near = difflib.get_close_matches(match["chip"] if match else name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"a topology is {_FORMS}; the TPUs are {', '.join(known)}; got {name!r}. Did you mean {near!r}?"
        )
    chip = known[match["chip"]]
    dims = _dims(chip)
    if match["shape"] is None:
        return _tpu(name, chip, _slice_shape(name, chip, match["count"]), int(match["slices"] or 1))
    sizes = tuple(map(int, match["shape"].split("x")))
    if len(sizes) not in (dims, dims + 1):
        example = "16x16" if dims == 2 else "4x4x4"
        raise ValueError(
            f"a slice of {chip.name} has {dims} dimensions, such as {chip.name}:{example}, and "
            f"{chip.name}:{example}x2 are two; got {name!r}"
        )
    return _tpu(name, chip, sizes[:dims], sizes[dims] if len(sizes) > dims else 1)


def _cpu(name: str, number: int) -> Topology:
    devices = jax.local_devices(backend="cpu")
    if len(devices) < number:
        raise ValueError(
            f"{name} needs {number} processor devices, and jax was started with {len(devices)}; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={number}"
        )
    return Topology(name, tuple(devices[:number]), None, "cpu")


def _gpu(name: str) -> Topology:
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        raise ValueError(f"{name} is the GPU of this machine, and jax sees none: {error}") from error
    return Topology(name, tuple(devices), chip_of(devices[0].device_kind), "gpu")


def _dims(chip: Chip) -> int:
    """Of the network inside a slice."""
    return 2 if chip.num_links == 4 else 3


def _tpu(name: str, chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"{name} needs the TPU compiler, which runs on any Linux machine and is not installed: "
            'pip install "clip-sharding[tpu]"',
            name="libtpu",
        )
    dims = len(shape)
    if not slices:
        raise ValueError(f"there is at least one slice; got {name!r}")
    host = _HOST_SHAPES[dims]
    if any(size % along for size, along in zip(shape, host, strict=True)):
        host = (1,) * dims
    kwargs: dict[str, Any] = {"chips_per_host_bounds": (*host, *(1,) * (3 - dims)), "num_slices": slices}
    if chip.megacore:
        kwargs["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{'x'.join(map(str, shape))}", **kwargs
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler knows no slice {name!r}: {error}") from error
    return Topology(name, tuple(found.devices), chip, "tpu", slices)


def _slice_shape(name: str, chip: Chip, count: str | None) -> tuple[int, ...]:
    """The squarest slice of that many chips, its sides powers of two, which is how the cloud makes them: `2x2x1`."""
    if count is None:
        raise ValueError(f"say how large a slice: {chip.name}:16x16 or {chip.name}-256; got {name!r}")
    chips = int(count) // (2 if chip.name in _NAMED_BY_CORES else 1)
    if chips < 1 or chips & (chips - 1):
        raise ValueError(f"a slice named by its number has a power of two of chips; got {name!r}: give its shape")
    dims = _dims(chip)
    power = int(math.log2(chips))
    return tuple(sorted((2 ** ((power + i) // dims) for i in range(dims)), key=lambda side: side == 1))
