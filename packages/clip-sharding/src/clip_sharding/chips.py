"""What is published of the chips that people rent: the peaks that a plan is measured against."""

from __future__ import annotations

import dataclasses

_DOCS = "https://docs.cloud.google.com/tpu/docs"
_TPU_V4_PAPER = "Jouppi et al., TPU v4, ISCA 2023, arXiv 2304.01433, table 4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The published peaks of one chip.

    Attributes:
        name: `v5e` and the like.
        device_kind: what jax calls its devices.
        flops: bfloat16 multiplications and additions a second.
        memory: bytes of HBM.
        memory_bandwidth: bytes of HBM a second, read and written together.
        network_bandwidth: bytes a second that it sends, over all its links to the other chips, while it receives as
            many.
        num_links: that carry them; each goes to one neighbour.
        slices_bandwidth: bytes a second that it sends to chips of other slices; None where that is not published.
        devices: jax's devices on a chip.
        megacore: whether its two cores are one device only when the compiler is told so.
        source: where the numbers are from.
    """

    name: str
    device_kind: str
    flops: float
    memory: int
    memory_bandwidth: float
    network_bandwidth: float
    num_links: int
    slices_bandwidth: float | None = None
    devices: int = 1
    megacore: bool = False
    source: str


# Google gives the network's bandwidth of both directions together since 2025; here it is that of one. Between slices it
# gives bits: 50 and 100 Gb/s a chip (v5p, v6e, tpu7x), and for a pod of 256 v5e 6.4 Tb/s.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v3",
            device_kind="TPU v3",
            flops=123e12,
            memory=32 * 2**30,
            memory_bandwidth=900e9,
            network_bandwidth=280e9,
            num_links=4,
            devices=2,
            source=f"{_DOCS}/v3; links: {_TPU_V4_PAPER}",
        ),
        Chip(
            name="v4",
            device_kind="TPU v4",
            flops=275e12,
            memory=32 * 2**30,
            memory_bandwidth=1200e9,
            network_bandwidth=300e9,
            num_links=6,
            megacore=True,
            source=f"{_DOCS}/v4; links: {_TPU_V4_PAPER}",
        ),
        Chip(
            name="v5e",
            device_kind="TPU v5 lite",
            flops=197e12,
            memory=16 * 2**30,
            memory_bandwidth=819e9,
            network_bandwidth=200e9,
            num_links=4,
            slices_bandwidth=3.125e9,
            source=f"{_DOCS}/v5e",
        ),
        Chip(
            name="v5p",
            device_kind="TPU v5",
            flops=459e12,
            memory=95 * 2**30,
            memory_bandwidth=2765e9,
            network_bandwidth=600e9,
            num_links=6,
            slices_bandwidth=6.25e9,
            source=f"{_DOCS}/v5p",
        ),
        Chip(
            name="v6e",
            device_kind="TPU v6 lite",
            flops=918e12,
            memory=32 * 2**30,
            memory_bandwidth=1638e9,
            network_bandwidth=400e9,
            num_links=4,
            slices_bandwidth=12.5e9,
            source=f"{_DOCS}/v6e",
        ),
        Chip(
            name="tpu7x",
            device_kind="TPU7x",
            flops=2307e12,
            memory=192 * 2**30,
            memory_bandwidth=7380e9,
            network_bandwidth=600e9,
            num_links=6,
            slices_bandwidth=12.5e9,
            devices=2,
            source=f"{_DOCS}/tpu7x",
        ),
        Chip(
            name="a100",
            device_kind="NVIDIA A100-SXM4-80GB",
            flops=312e12,
            memory=80 * 2**30,
            memory_bandwidth=2039e9,
            network_bandwidth=300e9,
            num_links=1,
            source="NVIDIA A100 datasheet, 80 GB SXM",
        ),
        Chip(
            name="h100",
            device_kind="NVIDIA H100 80GB HBM3",
            flops=989e12,
            memory=80 * 2**30,
            memory_bandwidth=3350e9,
            network_bandwidth=450e9,
            num_links=1,
            source="NVIDIA H100 datasheet, SXM, dense",
        ),
        Chip(
            name="h200",
            device_kind="NVIDIA H200",
            flops=989e12,
            memory=141 * 10**9,
            memory_bandwidth=4800e9,
            network_bandwidth=450e9,
            num_links=1,
            source="NVIDIA H200 datasheet, SXM, dense",
        ),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose devices jax calls so, if it is in the table; of a TPU some versions say its name, as `TPU v5e`."""
    return next((chip for chip in CHIPS.values() if device_kind in (chip.device_kind, f"TPU {chip.name}")), None)
