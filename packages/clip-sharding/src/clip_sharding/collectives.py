"""What devices send to each other: which instructions of a program are collectives, over how many devices, how much."""

from __future__ import annotations

import math
import re

from clip_sharding.hlo import Computation, Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES_LISTED = re.compile(r'_xla_megascale_target="?\{\{?([\d,]+)\}')
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
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
    return _share(kind, group_size(one.attributes, num_devices)) * size


def between_slices(send: Instruction, computation: Computation) -> tuple[str, float] | None:
    """The kind of collective that a `send` is a device's part of, and the bytes; None: it goes to no other slice.

    The devices of a slice first bring together among themselves what they can; each sends its own part of that. Of a
    permutation only those at the ends of a slice send, and they are what the others wait for.
    """
    transfer = _TRANSFER.search(send.attributes)
    if transfer is None:
        return None
    slices = _SLICES_LISTED.search(send.attributes)
    if transfer[1] not in _BETWEEN_SLICES or slices is None:
        raise ValueError(
            f"a transfer between slices is one of {', '.join(_BETWEEN_SLICES)} and names its slices; "
            f"got {send.name} with {send.attributes[:300]!r}"
        )
    kind = _BETWEEN_SLICES[transfer[1]]
    size = sum(array.bytes for array in computation.instructions[send.operands[0]].arrays)
    return kind, _share(kind, len(slices[1].split(","))) * size


def _share(kind: str, n: int) -> float:
    """What each of n devices sends, of its operand."""
    return {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)


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
