import numpy as np
import pytest

from clip_sharding import MeshConfig, make_mesh, to_global


def test_rows_are_divided_in_order_and_dtypes_kept():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "mask": np.ones(16, bool)}
    placed = to_global(batch, mesh)
    assert placed["image"].dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(placed["image"]), batch["image"])
    rows = {shard.device.id: np.asarray(shard.data) for shard in placed["image"].addressable_shards}
    assert {data.shape for data in rows.values()} == {(2, 3)}
    for position, device in enumerate(mesh.devices.flat):
        np.testing.assert_array_equal(rows[device.id], batch["image"][2 * position : 2 * position + 2])


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"8 devices; \['x'\] has 12 rows"):
        to_global({"x": np.zeros((12, 2))}, make_mesh())
