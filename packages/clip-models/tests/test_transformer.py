from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_models.config import ComputeConfig, TransformerConfig
from clip_models.transformer import scan_blocks, stack_blocks

CONFIG = TransformerConfig(width=16, num_layers=4, num_heads=2)


def loop_blocks(blocks, x, *, mask, causal):
    """The twin of scan_blocks: each layer's weights taken out of the stack, one call each."""
    graphdef, layers = nnx.split(blocks)
    for i in range(CONFIG.num_layers):
        x = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers))(x, mask=mask, causal=causal)
    return x


@pytest.fixture(scope="module")
def stack():
    """(graphdef, weights) of four blocks."""
    graphdef = nnx.split(nnx.eval_shape(lambda: stack_blocks(CONFIG, ComputeConfig(), rngs=nnx.Rngs(0))))[0]
    return graphdef, jax.jit(lambda: nnx.state(stack_blocks(CONFIG, ComputeConfig(), rngs=nnx.Rngs(0))))()


@pytest.mark.parametrize(
    ("compute", "causal"),
    [
        ({}, False),
        ({"unroll": 3}, True),
        ({"unroll": 9}, False),
        ({"remat": "minimal"}, True),
        ({"remat": "full"}, False),
    ],
    ids=str,
)
def test_scan_is_the_loop(stack, compute, causal):
    graphdef, weights = stack
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)[:, None, None, :]

    def scanned(weights, x):
        blocks = nnx.merge(graphdef, weights)
        return jnp.sin(
            scan_blocks(blocks, x, config=CONFIG, compute=ComputeConfig(**compute), mask=mask, causal=causal)
        ).sum()

    def looped(weights, x):
        return jnp.sin(loop_blocks(nnx.merge(graphdef, weights), x, mask=mask, causal=causal)).sum()

    value, gradients = jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(weights, x)
    expected_value, expected_gradients = jax.jit(jax.value_and_grad(looped, argnums=(0, 1)))(weights, x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


def test_a_deeper_stack_compiles_to_no_larger_program():
    def program(num_layers):
        config = replace(CONFIG, num_layers=num_layers)
        graphdef, weights = nnx.split(nnx.eval_shape(lambda: stack_blocks(config, ComputeConfig(), rngs=nnx.Rngs(0))))
        run = jax.jit(lambda w, x: scan_blocks(nnx.merge(graphdef, w), x, config=config, compute=ComputeConfig()))
        return len(run.lower(weights, jnp.ones((1, 5, 16))).as_text().splitlines())

    assert program(12) == program(2)


def test_remat_keeps_less(stack):
    graphdef, weights = stack
    x = jnp.ones((8, 64, 16))

    def temporary_bytes(remat):
        compute = ComputeConfig(remat=remat)
        loss = lambda w, x: scan_blocks(nnx.merge(graphdef, w), x, config=CONFIG, compute=compute).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(weights, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < temporary_bytes("minimal") < temporary_bytes("none")
