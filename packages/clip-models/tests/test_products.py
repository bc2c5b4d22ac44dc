import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_models.products import product

SPECS = {
    "bti,io->bto": ((3, 5, 7), (7, 11)),
    "bhqd,bhtd->bhqt": ((2, 3, 5, 7), (2, 3, 6, 7)),
    "bhqt,bhtd->bhqd": ((2, 3, 5, 6), (2, 3, 6, 7)),
}


@pytest.mark.parametrize("spec", SPECS)
def test_products_in_bfloat16_are_those_of_float32_rounded(spec):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in SPECS[spec])
    value, pull_back = jax.vjp(lambda a, b: product(spec, a, b), a, b)
    weights = jnp.asarray(rng.normal(size=value.shape), jnp.bfloat16)
    exact, pull_back_exact = jax.vjp(lambda *xs: jnp.einsum(spec, *xs), *(x.astype(jnp.float32) for x in (a, b)))
    expected = exact, *pull_back_exact(weights.astype(jnp.float32))
    for got, want in zip((value, *pull_back(weights)), expected, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-8, atol=1e-6)


def test_no_operand_of_a_bfloat16_product_is_converted_before_it():
    def loss(x, kernel):
        return product("bti,io->bto", x, kernel).astype(jnp.float32).sum()

    x, kernel = jnp.ones((2, 16, 32), jnp.bfloat16), jnp.ones((32, 64), jnp.bfloat16)
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert text.count("preferred_element_type=float32") == text.count("dot_general[") == 3
