from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_models import transformer
from clip_models.config import ComputeConfig, TransformerConfig
from clip_models.positions import rotation
from clip_models.remat import rematerialize
from clip_models.transformer import scan_blocks, scan_blocks_at, stack_blocks

CONFIG = TransformerConfig(width=16, num_layers=3, num_heads=2)
INPUT = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)[:, None, None, :]


def loop_blocks(blocks, x, *, mask, causal):
    """The twin of scan_blocks: each layer's weights taken out of the stack, one call each."""
    graphdef, layers = nnx.split(blocks)
    for i in range(CONFIG.num_layers):
        x = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers))(x, mask=mask, causal=causal)
    return x


@pytest.fixture(scope="module")
def stack():
    """(graphdef, weights) of three blocks."""
    graphdef = nnx.split(nnx.eval_shape(lambda: stack_blocks(CONFIG, ComputeConfig(), rngs=nnx.Rngs(0))))[0]
    return graphdef, jax.jit(lambda: nnx.state(stack_blocks(CONFIG, ComputeConfig(), rngs=nnx.Rngs(0))))()


@pytest.fixture(scope="module")
def loop(stack):
    """(value, gradients) of the loop, by causal."""
    graphdef, weights = stack

    def looped(weights, x, causal):
        return jnp.sin(loop_blocks(nnx.merge(graphdef, weights), x, mask=MASK, causal=causal)).sum()

    value_and_grad = jax.jit(jax.value_and_grad(looped, argnums=(0, 1)), static_argnums=2)
    return {causal: value_and_grad(weights, INPUT, causal) for causal in (False, True)}


@pytest.mark.parametrize(
    ("compute", "causal"),
    [
        ({}, False),
        ({"unroll": 2}, True),
        ({"unroll": 9}, False),
        ({"remat": "minimal"}, True),
        ({"remat": "proj"}, False),
        ({"remat": "full"}, False),
        ({"remat": "offload"}, False),
    ],
    ids=str,
)
def test_scan_is_the_loop(stack, loop, compute, causal):
    graphdef, weights = stack

    def scanned(weights, x):
        blocks = nnx.merge(graphdef, weights)
        out = scan_blocks(blocks, x, config=CONFIG, compute=ComputeConfig(**compute), mask=MASK, causal=causal)
        return jnp.sin(out).sum()

    value, gradients = jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(weights, INPUT)
    expected_value, expected_gradients = loop[causal]
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


@pytest.mark.parametrize(
    ("token", "causal", "turns", "remat"),
    [(0, False, 1, "none"), (-1, True, None, "minimal"), (np.array([3, 1]), True, 2, "none")],
    ids=["class token", "last token", "end token"],
)
def test_one_token_of_the_last_block_is_that_of_all(stack, monkeypatch, token, causal, turns, remat):
    monkeypatch.setattr(transformer, "CPU_MIN_TOKENS", 0)
    graphdef, weights = stack
    places = jnp.arange(5)[None] * jnp.arange(1, 1 + (turns or 1))[:, None]
    inputs = {"mask": MASK, "causal": causal, "rotation": rotation(places, 8, 100.0) if turns else None}
    inputs |= {"config": CONFIG, "compute": ComputeConfig(remat=remat)}

    def alone(weights, x):
        token_array = token if isinstance(token, int) else jnp.asarray(token)
        hidden, pooled = scan_blocks_at(nnx.merge(graphdef, weights), x, token_array, **inputs)
        return jnp.sin(pooled).sum(), hidden

    def of_all(weights, x):
        hidden = scan_blocks(nnx.merge(graphdef, weights), x, **inputs)
        return jnp.sin(hidden[np.arange(2), token]).sum(), hidden

    (value, hidden), gradients = jax.jit(jax.value_and_grad(alone, argnums=(0, 1), has_aux=True))(weights, INPUT)
    expected, expected_gradients = jax.jit(jax.value_and_grad(of_all, argnums=(0, 1), has_aux=True))(weights, INPUT)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden, expected[1], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


def test_what_is_not_asked_for_is_not_computed(stack, monkeypatch):
    monkeypatch.setattr(transformer, "CPU_MIN_TOKENS", 0)
    graphdef, weights = stack
    x = jnp.ones((8, 64, 16))

    def flops(take):
        run = jax.jit(
            lambda w, x: scan_blocks_at(nnx.merge(graphdef, w), x, 0, config=CONFIG, compute=ComputeConfig(unroll=3))[
                take
            ]
        )
        return run.lower(weights, x).compile().cost_analysis()["flops"]

    one_block = flops(0) / CONFIG.num_layers
    assert flops(1) < flops(0) - 0.7 * one_block


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

    sizes = [temporary_bytes(remat) for remat in ("full", "proj", "minimal", "none")]
    assert sizes == sorted(set(sizes))


def test_the_scan_is_the_loop_with_everything_that_layers_differ_in():
    config = replace(
        CONFIG,
        drop_path=0.5,
        dropout=0.2,
        attention_dropout=0.2,
        layer_scale=0.1,
        block="normformer",
        qk_norm=True,
        activation=("silu", "linear"),
    )
    compute, turned = ComputeConfig(), rotation(jnp.arange(5)[None], config.head_dim, 100.0)
    graphdef, weights = nnx.split(stack_blocks(config, compute, rngs=nnx.Rngs(0)))
    key = jax.random.key(2)

    def scanned(weights):
        blocks = nnx.merge(graphdef, weights)
        return scan_blocks(blocks, INPUT, config=config, compute=compute, key=key, rotation=turned)

    def looped(weights):
        x = INPUT
        for i, (layer_key, rate) in enumerate(zip(jax.random.split(key, 3), (0.0, 0.25, 0.5), strict=True)):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], weights))
            x = block(x, rotation=turned, key=layer_key, depth_rate=jnp.float32(rate))
        return x

    np.testing.assert_allclose(jax.jit(scanned)(weights), jax.jit(looped)(weights), rtol=1e-5, atol=1e-5)


def test_offload_says_where_it_cannot(monkeypatch):
    class Device:
        def addressable_memories(self):
            return []

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(ValueError, match="'pinned_host' of the host, which the backend cpu does not have"):
        rematerialize(lambda x: x, "offload")
