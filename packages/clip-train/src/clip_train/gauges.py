"""What a machine tells beside a step's metrics: speed per device, use of its peak, memory."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from clip_sharding import chip_of

_STATM = Path("/proc/self/statm")


class Gauges:
    """Read for each row of metrics, on the host alone: nothing here waits for a device.

    Args:
        num_devices: of the run, in all processes.
        flops_per_image: of the model and its loss, forward and backward.
        peak_flops: of all devices together, in a second; None: it is not published, and there is no MFU.
    """

    def __init__(
        self,
        *,
        num_devices: int,
        flops_per_image: float = 0.0,
        peak_flops: float | None = None,
    ) -> None:
        self._num_devices = num_devices
        self._mfu_per_rate = flops_per_image / peak_flops if peak_flops else None

    def __call__(self, images_per_second: float) -> dict[str, float]:
        """What they show.

        Args:
            images_per_second: of all devices, in the mean of the last steps.

        Returns:
            `images_per_second_per_device`; `mfu`, where the chip's peak is published; and bytes of `memory/host`, under
            Linux, and of `memory/device` and `memory/device_peak`, where the devices tell, of the fullest device of
            this process.
        """
        read = {"images_per_second_per_device": images_per_second / self._num_devices}
        if self._mfu_per_rate is not None:
            read["mfu"] = images_per_second * self._mfu_per_rate
        return read | memory()


def memory() -> dict[str, int]:
    """Bytes in use, as `Gauges` gives them."""
    read: dict[str, int] = {}
    if _STATM.exists():
        read["memory/host"] = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    devices = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if devices:
        read["memory/device"] = max(stats["bytes_in_use"] for stats in devices)
        read["memory/device_peak"] = max(stats["peak_bytes_in_use"] for stats in devices)
    return read


def peak_flops(device_kind: str, num_devices: int) -> float | None:
    """Of so many devices together, bfloat16, in a second; None where no peak is published.

    Args:
        device_kind: as jax calls them.
        num_devices: jax's.

    Example:
        >>> peak_flops("TPU v3", 8)  # four chips of two devices
        492000000000000.0
    """
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops * num_devices / chip.devices
