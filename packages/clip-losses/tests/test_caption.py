import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_losses import caption_loss


def reference(logits, labels, keep, label_smoothing, z_loss):
    x = np.asarray(logits, np.float64)
    lse = np.log(np.exp(x).sum(-1))
    picked = np.take_along_axis(x, labels[..., None], -1)[..., 0]
    losses = lse - (1 - label_smoothing) * picked - label_smoothing * x.mean(-1) + z_loss * lse**2
    return losses[keep].mean()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 1e-2)])
def test_equals_float64(dtype, label_smoothing, z_loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 5, 11)), dtype)
    labels, keep = rng.integers(0, 11, (3, 5)), rng.random((3, 5)) > 0.4
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    got = caption_loss(logits, jnp.asarray(labels), jnp.asarray(keep), **options)
    assert got.dtype == jnp.float32
    wide = np.asarray(logits.astype(jnp.float32))
    np.testing.assert_allclose(got, reference(wide, labels, keep, **options), rtol=1e-5)
    np.testing.assert_allclose(
        caption_loss(logits, jnp.asarray(labels), **options),
        reference(wide, labels, np.ones_like(keep), **options),
        rtol=1e-5,
    )


def test_what_a_mask_drops_may_hold_anything():
    logits = jnp.zeros((1, 3, 4)).at[0, 1].set(jnp.nan)
    labels, mask = jnp.array([[1, -100, 2]]), jnp.array([[True, False, True]])
    value, grad = jax.value_and_grad(caption_loss)(logits, labels, mask)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    assert np.isfinite(grad).all()
    assert not np.asarray(grad)[0, 1].any()
    assert float(caption_loss(logits, labels, jnp.zeros_like(mask))) == 0


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_beyond_the_words_is_loud(label):
    assert np.isnan(caption_loss(jnp.zeros((1, 4)), jnp.array([label])))


def test_refusals():
    logits, labels = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 2\)"):
        caption_loss(logits, labels[:, :2])
    with pytest.raises(ValueError, match="float32"):
        caption_loss(logits, labels.astype(jnp.float32))
    with pytest.raises(ValueError, match="mask must be bool"):
        caption_loss(logits, labels, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        caption_loss(logits, labels, label_smoothing=1.5)
