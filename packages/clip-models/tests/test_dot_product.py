import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_models import dot_product
from clip_models.dot_product import dot_product_attention


def heads(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.fixture(scope="module")
def qkv():
    return heads(2, 5, 3, 8), heads(2, 7, 3, 8, seed=1), heads(2, 7, 3, 8, seed=2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_what_jax_computes(qkv, causal, masked):
    mask = np.arange(7) < np.array([7, 3])[:, None, None, None] if masked else None
    ours = jax.jit(lambda *a: dot_product_attention(*a, mask=mask, causal=causal))(*qkv)
    expected = jax.jit(lambda *a: jax.nn.dot_product_attention(*a, mask=mask, is_causal=causal))(*qkv)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_query_that_may_look_nowhere_is_finite(qkv):
    mask = np.zeros((2, 1, 1, 7), bool)
    value, gradients = jax.value_and_grad(lambda *a: dot_product_attention(*a, mask=mask).sum(), (0, 1, 2))(*qkv)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_float32_logits_are_closer_in_bfloat16():
    q, k, v = (heads(4, 64, 2, 32, seed=seed) for seed in range(3))
    expected = dot_product_attention(8 * q, k, v)
    half = (8 * q).astype(jnp.bfloat16), k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    exact = dot_product_attention(*(x.astype(jnp.float32) for x in half))

    def error(float32_logits):
        return np.abs(dot_product_attention(*half, float32_logits=float32_logits) - exact).mean()

    assert error(float32_logits=True) < 0.7 * error(float32_logits=False)
    np.testing.assert_allclose(exact, expected, atol=0.5)


@pytest.mark.parametrize(("implementation", "device"), [("cudnn", "no GPU"), ("splash", "no TPU")])
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of machines without accelerators")
def test_what_cannot_run_here_says_so(qkv, implementation, device):
    with pytest.raises(ValueError, match=f"attention='{implementation}' cannot run: the backend is cpu, {device}"):
        dot_product_attention(*qkv, implementation=implementation)


@pytest.mark.parametrize(("implementation", "backend"), [("cudnn", "gpu"), ("splash", "tpu")])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_accelerators_compute_what_xla_computes(implementation, backend, masked, causal):
    if jax.default_backend() != backend:
        pytest.skip(f"needs a {backend}")
    q, k, v = (heads(2, 197, 4, 64, seed=seed, dtype=jnp.bfloat16) for seed in range(3))
    mask = jnp.arange(197) < jnp.array([197, 60])[:, None, None, None] if masked else None

    def run(implementation, *inputs):
        def loss(*a):
            out = dot_product_attention(
                *a, mask=mask, causal=causal, implementation=implementation, float32_logits=True
            )
            return jnp.sin(out.astype(jnp.float32)).mean(), out

        with jax.default_matmul_precision("highest"):
            (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    exact = run("xla", *(x.astype(jnp.float32) for x in (q, k, v)))
    for ours, xla, truth in zip(run(implementation, q, k, v), run("xla", q, k, v), exact, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=8e-3 * np.abs(truth).max())
        # What bfloat16 rounds is no fault of an implementation: it is as near to float32 as XLA's is, within 1e-3.
        error, usual = (np.linalg.norm(x - truth) / np.linalg.norm(truth) for x in (ours, xla))
        assert error < usual + 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_splash_attention_interpreted(monkeypatch, causal):
    """The TPU's kernel, step by step on the CPU: padding to blocks, masks of keys, a sample that may look nowhere."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    monkeypatch.setattr(dot_product, "platform", lambda: "tpu")
    kernel = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", kernel)
    q, k, v = (heads(2, 70, 2, 16, seed=seed) for seed in range(3))
    mask = np.arange(70) < np.array([70, 30])[:, None, None, None]

    def run(implementation):
        def loss(*a):
            out = dot_product_attention(*a, mask=mask, causal=causal, implementation=implementation)
            return jnp.sin(out).mean(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    for ours, expected in zip(run("splash"), run("xla"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    nowhere = dot_product_attention(q, k, v, mask=0 * mask > 0, causal=causal, implementation="splash")
    assert np.isfinite(nowhere).all()
