"""The least time that a program can take on a chip, from what it does and what is published of the chip."""

from __future__ import annotations

import dataclasses

from clip_sharding.chips import Chip
from clip_sharding.work import Program, Work

LIMITS = {"compute": "arithmetic", "memory": "HBM", "network": "communication", "slices": "between slices"}
"""What may limit a program, and what it is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one call, at the published peaks.

    Attributes:
        compute: the arithmetic alone.
        memory: reading and writing HBM alone.
        network: sending to other devices of the slice alone.
        slices: sending to other slices alone.
        in_order: one instruction after the other, each at whatever limits it. Nothing overlaps with its neighbours, so
            that this is no bound, but what a program without overlap would take at best.
    """

    compute: float
    memory: float
    network: float
    slices: float
    in_order: float

    @property
    def bound(self) -> float:
        """No run is faster, even if everything overlaps with everything."""
        return max(getattr(self, name) for name in LIMITS)

    @property
    def limit(self) -> str:
        """What takes the bound: `compute`, `memory`, `network` or `slices`."""
        return max(LIMITS, key=lambda name: getattr(self, name))


def roofline(program: Program, chip: Chip) -> Roofline | None:
    """Hold a program of one device against its chip.

    Args:
        program: of one device.
        chip: whose peaks its devices share.

    Returns:
        None where a peak that the program asks for is not published.
    """
    if program.sent_between_slices and chip.slices_bandwidth is None:
        return None
    seconds = [(one.times, *_seconds(one, chip)) for one in program.work]
    return Roofline(
        compute=sum(times * compute for times, compute, *_ in seconds),
        memory=sum(times * memory for times, _, memory, *_ in seconds),
        network=sum(times * network for times, _, _, network, _ in seconds),
        slices=sum(times * slices for times, *_, slices in seconds),
        in_order=sum(times * max(each) for times, *each in seconds),
    )


def _seconds(one: Work, chip: Chip) -> tuple[float, float, float, float]:
    # A permutation goes to one neighbour, over one link; the others use all at once.
    links = chip.num_links if one.opcode == "collective-permute" else 1
    away = one.sent / chip.slices_bandwidth * chip.devices if one.between_slices and chip.slices_bandwidth else 0.0
    return (
        one.flops / chip.flops * chip.devices,
        one.bytes / chip.memory_bandwidth * chip.devices,
        0.0 if one.between_slices else one.sent / chip.network_bandwidth * chip.devices * links,
        away,
    )
