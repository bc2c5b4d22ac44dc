import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh

from clip_sharding import MeshConfig, batch_readers, gather_items, gather_rows, make_mesh, to_global, to_local


def test_rows_are_divided_in_order_and_dtypes_kept():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "mask": np.ones(16, bool)}
    placed = to_global(batch, mesh)
    assert placed["image"].dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(placed["image"]), batch["image"])
    np.testing.assert_array_equal(to_local(placed["image"]), batch["image"])
    rows = {shard.device.id: np.asarray(shard.data) for shard in placed["image"].addressable_shards}
    assert {data.shape for data in rows.values()} == {(2, 3)}
    for position, device in enumerate(mesh.devices.flat):
        np.testing.assert_array_equal(rows[device.id], batch["image"][2 * position : 2 * position + 2])


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"8 devices; \['x'\] has 12 rows"):
        to_global({"x": np.zeros((12, 2))}, make_mesh())


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device of some process."""

    process_index: int


def mesh_of(processes, model):
    devices = np.array([FakeDevice(process) for process in processes], object)
    return Mesh(devices.reshape(-1, 1, model), ("data", "fsdp", "model"))


@pytest.mark.parametrize(
    ("processes", "model", "readers"),
    [
        ([0, 0, 1, 1], 1, (0, 2)),
        ([1, 1, 0, 0], 2, (1, 2)),
        ([0, 0, 1, 1, 2, 2, 3, 3], 4, (0, 2)),
        ([0, 1, 0, 1], 2, (0, 1)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(processes, model, readers):
    assert batch_readers(mesh_of(processes, model)) == readers


def test_processes_that_share_some_rows_are_refused():
    with pytest.raises(ValueError, match=r"process 0: \[0, 1\]; process 1: \[1, 2\].* let `model` divide the devices"):
        batch_readers(mesh_of([0, 0, 0, 1, 1, 1], 2))


def test_one_process_gathers_its_own_rows():
    rows = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(gather_rows(rows, make_mesh()), rows)
    assert gather_items(["a", "b"], make_mesh()) == ["a", "b"]
