import jax

from clip_models import init, logical_axes
from clip_models.params import flatten


def test_every_dim_of_every_parameter_has_a_name(config):
    axes = flatten(logical_axes(config))
    arrays = flatten(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    assert axes.keys() == arrays.keys()
    assert {name: len(dims) for name, dims in axes.items()} == {name: array.ndim for name, array in arrays.items()}


def test_equal_names_have_equal_sizes_within_a_tower(config):
    axes = flatten(logical_axes(config))
    arrays = flatten(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    sizes = {}
    for name, dims in axes.items():
        for dim, size in zip(dims, arrays[name].shape, strict=True):
            assert sizes.setdefault((name.split("/")[0], dim), size) == size, name


def test_known_names(siglip):
    axes = logical_axes(siglip)
    assert axes["text"]["token_embedding"] == ("vocab", "embed")
    assert axes["vision"]["blocks"]["attention"]["query"]["kernel"] == ("layers", "embed", "heads")
    assert axes["vision"]["blocks"]["mlp"]["fc2"]["kernel"] == ("layers", "mlp", "embed")
    assert axes["logit_scale"] == ()
