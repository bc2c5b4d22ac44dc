import jax
import jax.numpy as jnp
import numpy as np

from clip_models.positions import places_of_grid, places_of_shapes, resample, rotate, rotation, rotation2d, sincos2d


def test_learnt_positions_are_resampled_as_images_are():
    """The reference is jax's antialiased resize, which is what PyTorch's interpolate computes."""
    table = np.random.default_rng(0).normal(size=(16 * 12, 5)).astype(np.float32)
    shapes = np.array([[7, 20], [40, 3]])
    resampled = resample(table, (16, 12), places_of_shapes(shapes, 144 + 48))
    for (h, w), positions in zip(shapes, resampled, strict=True):
        expected = jax.image.resize(table.reshape(16, 12, 5), (h, w, 5), "bilinear", antialias=True).reshape(-1, 5)
        np.testing.assert_allclose(positions[: h * w], expected, atol=1e-5)
        np.testing.assert_allclose(resample(table, (16, 12), places_of_grid(h, w))[0], expected, atol=1e-5)
        assert np.isfinite(positions).all()


def test_sincos2d_is_big_visions():
    """As models/vit.py writes it."""
    h, w, width = 3, 5, 16
    y, x = np.mgrid[:h, :w]
    omega = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    np.testing.assert_allclose(sincos2d(width, (h, w), places_of_grid(h, w))[0], expected, atol=1e-5)


def test_rotary_products_know_only_the_distance():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(i, j):
        return (
            rotate(q, rotation(jnp.full((1, 1), i), 8, 100.0)) * rotate(k, rotation(jnp.full((1, 1), j), 8, 100.0))
        ).sum()

    np.testing.assert_allclose(product(3, 1), product(12, 10), atol=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-2
    np.testing.assert_allclose(product(4, 4), (q * k).sum(), atol=1e-5)


def test_rotary_turns_rows_and_columns_apart_and_leaves_what_has_no_place():
    x = jnp.ones((1, 2 + 6, 1, 8))
    turned = rotate(x, rotation2d(8, 100.0, (2, 3), places_of_grid(2, 3), num_unturned=2))[0, :, 0]
    np.testing.assert_array_equal(turned[:3], jnp.ones((3, 8)))  # two tokens, and the patch at 0, 0
    pairs_of_rows, pairs_of_columns = turned[:, [0, 1, 4, 5]], turned[:, [2, 3, 6, 7]]
    np.testing.assert_array_equal(pairs_of_rows[2:5], jnp.ones((3, 4)))  # the first row
    np.testing.assert_allclose(pairs_of_columns[3], pairs_of_columns[6], atol=1e-6)  # one column, two rows
    assert not np.allclose(pairs_of_rows[3], pairs_of_rows[6], atol=1e-2)
