"""Memory and work, read off the compiled program and the jaxpr without running either."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from clip_losses import sigmoid_loss, sigmoid_loss_and_grads, softmax_loss

B, E, TILE = 4096, 512, 512
LOSSES = {"sigmoid": (sigmoid_loss, 4), "softmax": (softmax_loss, 3)}


def arguments(b, num, dtype=jnp.float32):
    embeds = jax.ShapeDtypeStruct((b, E), dtype)
    return (embeds, embeds, *[jax.ShapeDtypeStruct((), jnp.float32)] * (num - 2))


def temp_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("b", [4096, 16384, 65536, 5000])
def test_temp_is_a_few_tiles(name, b):
    loss, num = LOSSES[name]
    both = jax.value_and_grad(lambda *args: loss(*args, tile=TILE), argnums=tuple(range(num)))
    assert temp_bytes(both, *arguments(b, num)) <= 16 * TILE * TILE + 4 * (TILE + TILE) * E + 32 * b


@pytest.mark.parametrize("name", LOSSES)
def test_ids_and_mask_cost_rows_not_pairs(name):
    loss, num = LOSSES[name]
    b = 16384
    ids, mask = jax.ShapeDtypeStruct((b,), jnp.int32), jax.ShapeDtypeStruct((b,), jnp.bool_)

    def with_options(ids, mask, *args):
        return loss(*args, image_ids=ids, text_ids=ids, mask=mask, tile=TILE)

    both = jax.value_and_grad(with_options, argnums=tuple(range(2, 2 + num)))
    assert temp_bytes(both, ids, mask, *arguments(b, num)) <= 16 * TILE * TILE + 4 * (TILE + TILE) * E + 64 * b


def test_bfloat16_adds_only_the_accumulators():
    b = 16384
    both = jax.value_and_grad(lambda *args: sigmoid_loss(*args, tile=TILE), argnums=(0, 1, 2, 3))
    bound = 16 * TILE * TILE + 4 * (TILE + TILE) * E + 32 * b
    # XLA for CPU also keeps float32 copies of both inputs: it has no bfloat16 product.
    assert temp_bytes(both, *arguments(b, 4, jnp.bfloat16)) <= bound + 17 * b * E


def products(jaxpr, repeat=1):
    """How many times B·B·E multiply-adds the dots of a jaxpr come to."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left, right = (v.aval for v in equation.invars)
            inner = left.shape[contract[0]]
            total += repeat * left.size * right.size / inner / (B * B * E)
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner_jaxpr in jaxprs_in_params(equation.params):
            total += products(inner_jaxpr, repeat * length)
    return total


def count(function, *arguments):
    return products(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sigmoid", {"tile": 512}, 3),
        ("sigmoid", {"impl": "dense"}, 3),
        ("softmax", {"tile": 512}, 4),
        ("softmax", {"impl": "dense"}, 3),
        ("softmax", {"direction": "image_to_text"}, 3),
        ("softmax", {"direction": "text_to_image"}, 3),
    ],
)
def test_matmuls(name, options, expected):
    loss, num = LOSSES[name]
    function = lambda *args: loss(*args, **options)  # noqa: E731
    everything = jax.value_and_grad(function, argnums=tuple(range(num)))
    assert count(everything, *arguments(B, num)) == expected
    assert count(function, *arguments(B, num)) == 1


@pytest.mark.parametrize(("name", "expected"), [("sigmoid", 2), ("softmax", 3)])
@pytest.mark.parametrize("tower", [0, 1])
def test_a_frozen_tower_drops_its_accumulator(name, expected, tower):
    loss, num = LOSSES[name]
    one = jax.value_and_grad(lambda *args: loss(*args, tile=TILE), argnums=(tower, 2))
    assert count(one, *arguments(B, num)) == expected
    neither = jax.value_and_grad(lambda *args: loss(*args, tile=TILE), argnums=2)
    assert count(neither, *arguments(B, num)) == expected - 1


def test_loss_and_grads_is_one_pass():
    assert count(lambda *args: sigmoid_loss_and_grads(*args, tile=TILE), *arguments(B, 4)) == 3
