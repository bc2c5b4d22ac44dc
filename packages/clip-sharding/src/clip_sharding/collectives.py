"""What devices send to each other: which instructions of a program are collectives, over how many devices, how much."""

from __future__ import annotations

import math
import re

from clip_sharding.hlo import Computation, Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
# The compiler lays one transfer over several fusions: the first begins it, and the others name it again.
_CONTINUES = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')


def collective_in(computation: Computation) -> Instruction | None:
    """The collective of a fused computation, if it has one."""
    return next((one for one in computation.instructions.values() if one.opcode in COLLECTIVES), None)


def continues(collective: Instruction) -> bool:
    """Whether it is a later part of a transfer that another instruction began."""
    return _CONTINUES.search(collective.attributes) is not None


def bytes_sent(kind: str, one: Instruction, computation: Computation, num_devices: int) -> float:
    """What a device sends in one collective, by ring algorithms.

    Args:
        kind: one of `COLLECTIVES`.
        one: the collective, in its own computation.
        computation: that computation.
        num_devices: of the program, where the collective names no groups.
    """
    size = sum(array.bytes for name in one.operands for array in computation.instructions[name].arrays)
    n = group_size(one.attributes, num_devices)
    share = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
    return size * share


def group_size(attributes: str, num_devices: int) -> int:
    """Devices that take part with each other."""
    if found := _MESH_GROUPS.search(attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]))
    if found := _IOTA_GROUPS.search(attributes):
        return int(found[1])
    if found := _LISTED_GROUPS.search(attributes):
        return len(found[1].split(","))
    return num_devices
