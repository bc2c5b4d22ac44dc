import pytest

from clip_train.gauges import Gauges, memory


def test_speed_is_per_device_and_a_share_of_the_published_peak():
    read = Gauges(num_devices=8, flops_per_image=2e9, peak_flops=8e12)
    assert {**read(1000.0), "memory/host": 0} == {
        "images_per_second_per_device": 125.0,
        "mfu": pytest.approx(0.25),
        "memory/host": 0,
    }
    assert "mfu" not in Gauges(num_devices=8)(1000.0)


class Device:
    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_memory_is_that_of_the_fullest_device_and_of_the_host(monkeypatch):
    devices = [Device({"bytes_in_use": n, "peak_bytes_in_use": 2 * n}) for n in (5, 7)]
    monkeypatch.setattr("clip_train.gauges.jax.local_devices", lambda: devices)
    read = memory()
    assert (read["memory/device"], read["memory/device_peak"]) == (7, 14)
    assert read["memory/host"] > 2**20
    devices[:] = [Device(None)]
    assert "memory/device" not in memory()
