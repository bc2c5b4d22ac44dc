"""A program compiled for devices that need not be here: its memory, its work and the least time it can take."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from clip_sharding.hlo import parse_hlo
from clip_sharding.roofline import Roofline, roofline
from clip_sharding.table import bytes_per_device
from clip_sharding.topology import Topology, find_topology
from clip_sharding.work import count_work

# A program for processors is looked at, never run: machine code need not be good.
_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)\s*([KMGT]?)i?B?"
# The compiler refuses what it laid out, or, sooner, what is sure to be too large: arguments and results are in both.
_REFUSED = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


class DoesNotFitError(ValueError):
    """A program needs more memory than its devices have.

    Attributes:
        needed: bytes of each device.
        available: likewise.
    """

    def __init__(self, needed: int, available: int) -> None:
        self.needed = needed
        self.available = available
        gib = 2**30
        super().__init__(
            f"the program needs {needed / gib:.2f} GiB of each device and {available / gib:.2f} GiB are available: "
            f"{(needed - available) / gib:.2f} GiB too many"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call of a program takes of each device.

    Attributes:
        topology: the devices' name.
        num_devices: over which the program is divided.
        num_chips: that they are.
        chip: the name of the chip in `CHIPS`, if it is there.
        memory: bytes by what they are for: the groups that `plan` was told, `activations` (what one loop keeps for
            another), `temporaries` (the rest), and `peak`, all together at the worst moment.
        available: bytes of a device that a program can have; None where it is not known.
        flops: that a device executes, in matrix products and convolutions.
        flops_check: the same with each loop's body once, over what the compiler itself counts so, other arithmetic
            included: a little below 1 where the count is right. None where the compiler does not say.
        bytes: of HBM that a device reads and writes.
        sent: bytes that a device sends to others of its slice, by kind of collective.
        sent_between_slices: likewise to other slices.
        uncounted_loops: loops of unknown length, which counted as one turn.
        library_calls: calls into libraries whose arithmetic is not in `flops`.
        roofline: seconds at the chip's peaks; None without published ones.
    """

    topology: str
    num_devices: int
    num_chips: int
    chip: str | None
    memory: Mapping[str, int]
    available: int | None
    flops: float
    flops_check: float | None
    bytes: float
    sent: Mapping[str, float]
    sent_between_slices: Mapping[str, float]
    uncounted_loops: int
    library_calls: int
    roofline: Roofline | None


def plan(step: Any, *args: Any, topology: Topology | str, groups: Mapping[str, Any] | None = None) -> Plan:
    """Compile a jitted function for a topology and say what a call of it takes.

    Args:
        step: from `jax.jit`.
        *args: `jax.ShapeDtypeStruct`, each with a sharding over devices of the topology.
        topology: from `find_topology`, or its name.
        groups: trees of arguments, by what they are for; their bytes are told apart.

    Raises:
        DoesNotFitError: it needs more memory than the devices have.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from clip_sharding import MeshConfig, find_topology, make_mesh, plan
        >>> devices = find_topology("cpu:8")
        >>> mesh = make_mesh(MeshConfig(), devices.devices)
        >>> x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
        >>> w = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
        >>> made = plan(jax.jit(lambda x, w: x @ w), x, w, topology=devices)
        >>> made.flops  # 8 of 64 rows
        16384.0
    """
    topology = find_topology(topology) if isinstance(topology, str) else topology
    try:
        compiled = step.lower(*args).compile(_OPTIONS.get(topology.platform))
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(error) or error from error
    program = count_work(parse_hlo(compiled.as_text()))
    stats = compiled.memory_analysis()
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    peak = stats.peak_memory_in_bytes if topology.platform == "tpu" else total
    if topology.memory is not None and peak > topology.memory:
        raise DoesNotFitError(peak, topology.memory)
    activations = min(int(program.kept), stats.temp_size_in_bytes)
    once = (compiled.cost_analysis() or {}).get("flops")
    return Plan(
        topology=topology.name,
        num_devices=len(topology.devices),
        num_chips=topology.num_chips,
        chip=topology.chip.name if topology.chip else None,
        memory={
            **{name: bytes_per_device(tree) for name, tree in (groups or {}).items()},
            "activations": activations,
            "temporaries": stats.temp_size_in_bytes - activations,
            "peak": peak,
        },
        available=topology.memory,
        flops=program.flops,
        flops_check=program.flops_counted_once / once if once else None,
        bytes=program.bytes,
        sent=program.sent,
        sent_between_slices=program.sent_between_slices,
        uncounted_loops=program.uncounted_loops,
        library_calls=program.library_calls,
        roofline=roofline(program, topology.chip) if topology.chip else None,
    )


def _refusal(error: Exception) -> DoesNotFitError | None:
    """What the compiler said of the memory, if that was its reason."""
    for form in _REFUSED:
        if found := form.search(str(error)):
            needed, unit, available, of = found.groups()
            return DoesNotFitError(int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[of]))
    return None
