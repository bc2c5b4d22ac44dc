import jax
import numpy as np
import pytest

from clip_train.optimizers.inverse_root import inverse_roots


@pytest.mark.parametrize(("method", "p"), [("newton", 4), ("newton", 6), ("eigh", 2)])
def test_roots_are_those_of_float64(method, p):
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(3, 12, 12)))[0]
    # Gradients' squares may be far below what float32 can square again.
    values = np.logspace(0, -3, 12) * np.array([1.0, 1e-20, 1e12])[:, None]
    matrices = (vectors * values[:, None]) @ vectors.mT
    ridge = 1e-6 * values[:, :1]
    exact = (vectors * ((values + ridge) ** (-1 / p))[:, None]) @ vectors.mT
    roots, errors = jax.jit(lambda given: inverse_roots(given, p, method=method))(np.float32(matrices))
    size = np.abs(exact).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(roots / size, exact / size, atol=1e-4)
    assert np.all(np.asarray(errors) < 1e-4)


@pytest.mark.parametrize("method", ["newton", "eigh"])
def test_what_has_no_root_says_so(method):
    matrices = np.float32(np.stack([np.full((3, 3), np.nan), np.zeros((3, 3)), np.eye(3)]))
    _, errors = jax.jit(lambda given: inverse_roots(given, 4, method=method))(matrices)
    assert list(np.isfinite(errors)) == [False, False, True]
