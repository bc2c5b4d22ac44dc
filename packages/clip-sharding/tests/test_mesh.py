import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from clip_sharding import MeshConfig, SlicesConfig, make_mesh


def test_the_free_axis_takes_what_remains():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "model": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "fsdp": 1}, "must multiply to the number of devices, 8"),
        ({"data": -1, "fsdp": 3}, "leave no whole number for 'data'"),
    ],
)
def test_axes_that_do_not_multiply_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("sizes", [{"data": 0}, {"data": -1, "fsdp": -1}, {"model": -2}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh axis"):
        MeshConfig(**sizes)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device of two slices of four."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"


@pytest.mark.parametrize(
    ("config", "across"),
    [
        (MeshConfig(), "data"),
        (MeshConfig(data=2, fsdp=4), "data"),
        (MeshConfig(data=1, fsdp=-1), "fsdp"),
        (MeshConfig(data=2, fsdp=4, slices=SlicesConfig(fsdp=2)), "fsdp"),
    ],
    ids=str,
)
def test_the_axis_that_talks_least_lies_between_slices(config, across):
    mesh = make_mesh(config, [FakeDevice(i, i % 2) for i in range(8)])
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    first, last = np.split(slices, 2, axis=mesh.axis_names.index(across))
    assert set(first.flat) == {0}
    assert set(last.flat) == {1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_slices_that_cannot_be_spanned_are_refused():
    devices = [FakeDevice(i, i % 2) for i in range(8)]
    with pytest.raises(ValueError, match=r"multiply to the number of slices, 2; got .* which make 4"):
        make_mesh(MeshConfig(slices=SlicesConfig(data=4)), devices)
    with pytest.raises(ValueError, match="'model' of 1 devices does not divide over 2 slices"):
        make_mesh(MeshConfig(slices=SlicesConfig(model=2)), devices)
    with pytest.raises(ValueError, match="as many devices as the others"):
        make_mesh(MeshConfig(), devices[:-1])
