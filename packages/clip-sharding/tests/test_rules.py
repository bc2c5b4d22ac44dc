import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from clip_sharding import MeshConfig, Rules, constraint, dividing_size, make_mesh, shardings, strategy

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


def test_what_would_divide_divides_every_array():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    # As in So400m, where a width would divide further than the bias that has that of the MLP alone.
    axes = {"bias": ("mlp",), "wi": ("embed", "mlp"), "whole": ("norm",), "wo": ("mlp", "embed")}
    sizes = {"bias": (30,), "wi": (36, 30), "whole": (5,), "wo": (30, 64)}
    shapes = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}
    with pytest.raises(ValueError, match=r"\['bias'\].*nor can 1 others\. fsdp of size 2 would divide them all"):
        shardings(strategy("fsdp"), mesh, axes, shapes)
    assert dividing_size(strategy("fsdp"), "fsdp", 8, axes, shapes) == 2
    # In an array with a dimension that divides, that one is taken.
    assert shardings(strategy("fsdp"), mesh, {"wo": axes["wo"]}, {"wo": shapes["wo"]})["wo"].spec == P(None, "fsdp")


def test_an_activation_that_cannot_be_divided_is_called_so():
    constrain = constraint(Rules((("length", "model"),)), make_mesh(MeshConfig(data=4, model=2)))
    with pytest.raises(ValueError, match=r"an activation with shape \(8, 197, 4\).*'length' of size 197 over model"):
        jax.eval_shape(lambda x: constrain(x, ("batch", "length", "embed")), jnp.zeros((8, 197, 4)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("mpl", "model")], "no array has an axis 'mpl'; there are embed, mlp. Did you mean 'mlp'"),
        ([("batch", "model")], "without a rule"),
        ([("mlp", [])], r"one mesh axis or more, each once; got \('mlp', \(\)\)"),
        ([("mlp", ["model", "model"])], "each once"),
        ([("mlp", "fsdp")], "spans 1 of 8 devices"),
        ([("mlp", "data")], "nothing is divided over the mesh axis model of 2 devices"),
    ],
)
def test_rules_that_would_do_nothing_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        strategy(rules).check(make_mesh(MeshConfig(data=4, model=2)), {"embed", "mlp"})


def test_axis_names_must_fit_the_array_and_the_mesh():
    mesh = make_mesh()
    with pytest.raises(ValueError, match="2 dimensions"):
        Rules().spec(("embed",), (3, 4), mesh)
    with pytest.raises(ValueError, match="'expert'"):
        Rules((("embed", "expert"),)).spec(("embed",), (8,), mesh)


def test_an_unknown_strategy_gets_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'fsdp'"):
        strategy("fdsp")
