import jax
import pytest
from jax.sharding import AxisType

from clip_sharding import MeshConfig, make_mesh


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
