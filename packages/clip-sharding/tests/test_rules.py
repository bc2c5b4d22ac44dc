import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_sharding import MeshConfig, Rules, make_mesh, shardings, strategy

AXES = {"wi": ("layers", "embed", "mlp"), "bias": ("embed",), "scale": ()}
SHAPES = {"wi": (4, 96, 384), "bias": (96,), "scale": ()}


def _tree():
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


def test_fsdp_divides_each_array_once_and_bytes_fall_as_one_over_n():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    placed = shardings(strategy("fsdp"), mesh, AXES, _tree())
    assert placed["wi"].spec == P(None, None, "fsdp")
    assert placed["bias"].spec == P("fsdp")
    assert placed["scale"].spec == P()
    made = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape), _tree()), out_shardings=placed)()
    assert made["wi"].addressable_shards[0].data.nbytes * 8 == made["wi"].nbytes


def test_replicated_divides_nothing():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    assert all(s.is_fully_replicated for s in shardings(strategy("replicated"), mesh, AXES, _tree()).values())


def test_the_first_axis_that_divides_is_taken():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    assert strategy("fsdp").spec(("embed", "mlp"), (96, 150), mesh) == P("fsdp", None)


def test_what_cannot_be_divided_is_named_with_what_would():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    with pytest.raises(
        ValueError,
        match=r"\['bias'\] with shape \(100,\).*'embed' of size 100 over fsdp of size 8.* 4 would.*96 or 104",
    ):
        shardings(strategy("fsdp"), mesh, {"bias": ("embed",)}, {"bias": jax.ShapeDtypeStruct((100,), jnp.float32)})


def test_axis_names_must_fit_the_array_and_the_mesh():
    mesh = make_mesh()
    with pytest.raises(ValueError, match="2 dimensions"):
        Rules().spec(("embed",), (3, 4), mesh)
    with pytest.raises(ValueError, match="'expert'"):
        Rules((("embed", "expert"),)).spec(("embed",), (8,), mesh)


def test_an_unknown_strategy_gets_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'fsdp'"):
        strategy("fdsp")
