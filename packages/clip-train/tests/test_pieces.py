import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_train import pieces
from clip_train.pieces import Kept, Place, place_array, take_pieces

MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
SPECS = [(), ("a",), ("b", "a"), (("a", "b"),), (None, "b"), ("a", "b")]


def placed(x, spec):
    return jax.device_put(x, NamedSharding(MESH, PartitionSpec(*spec)))


def kept(x, taken):
    """Lays pieces one after the other, and returns what is kept where and a function that reads of it."""
    data, places = b"", []
    for bounds, box in taken:
        places.append(Place(bounds, "part", len(data)))
        data += box.tobytes()
    return Kept(x.shape, x.dtype, places), lambda part, offset, length: memoryview(data)[offset : offset + length]


@pytest.mark.parametrize("after", SPECS)
@pytest.mark.parametrize("before", SPECS)
def test_arrays_are_put_together_under_any_sharding(before, after):
    x = placed(jnp.arange(8 * 16 * 3).reshape(8, 16, 3).astype(jnp.bfloat16), before)
    there, read = kept(x, take_pieces({"x": x})["x"])
    assert sum(len(read("part", 0, 10**9)[place.offset :]) > 0 for place in there.places) == len(there.places)
    wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed(x, after).sharding)
    found = place_array(wanted, there, read)
    assert found.sharding == wanted.sharding
    np.testing.assert_array_equal(found, x)


def test_no_more_is_read_than_a_device_is_to_hold():
    x = placed(jnp.arange(64.0).reshape(16, 4), ())
    there, read = kept(x, take_pieces({"x": x})["x"])
    lengths = []

    def counted(part, offset, length):
        lengths.append(length)
        return read(part, offset, length)

    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("a",)), PartitionSpec("a"))
    place_array(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), there, counted)
    assert lengths == [4 * 4 * 4] * 4


def test_processes_divide_what_they_all_have(monkeypatch):
    x, scalar = placed(jnp.arange(20.0).reshape(10, 2), ()), placed(jnp.float32(3), ())

    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    class Shared:
        """An array that three processes hold whole."""

        def __init__(self, array):
            self.shape, self.addressable_shards, self.sharding = array.shape, array.addressable_shards, self

        def devices_indices_map(self, shape):
            return {Device(i): (slice(None),) * len(shape) for i in range(3)}

    found, scalars = [], []
    for i in range(3):
        monkeypatch.setattr(pieces.jax, "process_index", lambda i=i: i)
        taken = take_pieces({"x": Shared(x), "scalar": Shared(scalar)})
        found += taken["x"]
        scalars += taken["scalar"]
    assert [len(data) for _, data in found] == [3, 3, 4]
    there, read = kept(x, found)
    wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    np.testing.assert_array_equal(place_array(wanted, there, read), x)
    assert [piece.data.item() for piece in scalars] == [3.0]


def test_rows_may_be_more_or_fewer():
    x = placed(jnp.ones((4, 2)), ())
    there, read = kept(x, take_pieces({"x": x})["x"])
    for rows in (2, 6):
        wanted = jax.ShapeDtypeStruct((rows, 2), x.dtype, sharding=x.sharding)
        np.testing.assert_array_equal(place_array(wanted, there, read), np.arange(rows)[:, None] < np.full((1, 2), 4))
