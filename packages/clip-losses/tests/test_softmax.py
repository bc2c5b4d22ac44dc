import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from clip_losses import softmax_loss, softmax_loss_and_grads

# Every example compiles, so few, and no deadline.
FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None)
GRADIENT_ERROR = {10.0: 1e-6, 20.0: 1e-6, 100.0: 1e-5}


def check(oracle, got, want, gradient_error):
    loss, grads = got
    want_loss, want_grads = want
    assert oracle.relative(loss, want_loss) <= 1e-6
    for got_grad, want_grad, error in zip(grads, want_grads, (gradient_error, gradient_error, 1e-5), strict=True):
        assert oracle.relative(got_grad, want_grad) <= error


@pytest.mark.parametrize("scale", GRADIENT_ERROR)
@pytest.mark.parametrize("aligned", [0.0, 0.5])
@pytest.mark.parametrize("options", [{"impl": "dense"}, {"tile": 128}, {"tile": (96, 200)}])
def test_equals_float64(oracle, scale, aligned, options):
    image, text = oracle.embeds(0, 384, 64, aligned=aligned)
    got = softmax_loss_and_grads(image, text, scale, **options)
    check(oracle, got, oracle.softmax(image, text, scale), GRADIENT_ERROR[scale])


@pytest.mark.parametrize("tile", [128, 384])
def test_a_solved_batch_keeps_its_digits(oracle, tile):
    """With all pairs found, the loss is 1e-6 and 1 − p cancels; the logits' own rounding is what is left."""
    image, text = oracle.embeds(0, 384, 64, aligned=3.0)
    for scale, error in ((20.0, 2e-6), (100.0, 1e-5)):
        loss, grads = softmax_loss_and_grads(image, text, scale, tile=tile)
        want, want_grads = oracle.softmax(image, text, scale)
        for got, expected in zip((loss, *grads), (want, *want_grads), strict=True):
            assert oracle.relative(got, expected) <= error


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("options", [{"impl": "dense"}, {"tile": 128}, {"tile": (50, 400)}, {"impl": "tiled"}])
def test_one_direction_equals_float64(oracle, direction, options):
    image, text = oracle.embeds(0, 384, 64, aligned=0.5)
    ids = np.arange(384) % 100
    got = softmax_loss_and_grads(image, text, 20.0, direction=direction, text_ids=ids, **options)
    check(oracle, got, oracle.softmax(image, text, 20.0, direction=direction, text_ids=ids), 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_low_precision_inputs(oracle, dtype, scale):
    image, text = (jnp.asarray(x, dtype) for x in oracle.embeds(0, 256, 64, aligned=0.5))
    loss, grads = softmax_loss_and_grads(image, text, scale, tile=128)
    want, want_grads = oracle.softmax(image.astype(jnp.float32), text.astype(jnp.float32), scale)
    assert loss.dtype == jnp.float32
    assert grads[0].dtype == grads[1].dtype == dtype
    assert oracle.relative(loss, want) <= 1e-6
    for got, expected in zip(grads, want_grads, strict=True):
        assert oracle.relative(got.astype(jnp.float32), expected) <= 3e-3


@FEW
@given(
    b=st.integers(1, 40),
    tile=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    seed=st.integers(0, 99),
    use=st.tuples(*[st.booleans()] * 3),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    direction=st.sampled_from(["both", "image_to_text", "text_to_image"]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_any_shape_tile_and_option(oracle, b, tile, seed, use, label_smoothing, direction, reduction):
    rng = np.random.default_rng(seed)
    image, text = oracle.embeds(seed, b)
    options = {
        "image_ids": rng.integers(0, max(b // 2, 1), b) if use[0] else None,
        "text_ids": rng.integers(0, max(b // 2, 1), b) if use[1] else None,
        "mask": rng.random(b) > 0.3 if use[2] else None,
        "label_smoothing": label_smoothing,
        "direction": direction,
        "reduction": reduction,
    }
    got = softmax_loss_and_grads(image, text, 10.0, tile=tile, **options)
    want = oracle.softmax(image, text, 10.0, **options)
    for x, y in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_masked_equals_removed_even_when_it_holds_nan(oracle):
    image, text = oracle.embeds(0, 20)
    mask = np.arange(20) % 3 != 1
    bad = np.where(mask[:, None], image, np.nan), np.where(mask[:, None], text, np.inf)
    for tile in (7, 20):
        loss, grads = softmax_loss_and_grads(*bad, 10.0, mask=mask, tile=tile, label_smoothing=0.1)
        want, want_grads = softmax_loss_and_grads(image[mask], text[mask], 10.0, label_smoothing=0.1)
        np.testing.assert_allclose(loss, want, rtol=1e-6)
        for got, expected in zip(grads[:2], want_grads[:2], strict=True):
            np.testing.assert_allclose(np.asarray(got)[mask], expected, rtol=1e-4, atol=1e-7)
            assert not np.asarray(got)[~mask].any()


def test_nan_in_a_kept_row_reaches_the_loss(oracle):
    image, text = oracle.embeds(0, 20)
    image[3, 2] = np.nan
    assert np.isnan(softmax_loss(image, text, 10.0, tile=8))


@pytest.mark.parametrize("scale", [0.0, -10.0, 1e4])
@pytest.mark.parametrize("tile", [16, 30])
def test_extreme_scale(oracle, scale, tile):
    image, text = oracle.embeds(0, 30)
    loss, grads = softmax_loss_and_grads(image, text, scale, tile=tile)
    want, _ = oracle.softmax(image, text, scale)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    with jax.enable_x64(True):  # at 1e4 the rounding of a float32 logit moves the softmax
        image, text = (x.astype(np.float64) for x in (image, text))
        _, grads = softmax_loss_and_grads(image, text, scale, tile=tile)
        for got, expected in zip(grads, oracle.softmax(image, text, scale)[1], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_empty_masked_and_single(oracle):
    loss, grads = softmax_loss_and_grads(jnp.zeros((0, 4)), jnp.zeros((0, 4)), 10.0)
    assert (float(loss), grads[0].shape, float(grads[2])) == (0.0, (0, 4), 0.0)
    image, text = oracle.embeds(0, 5)
    for arguments in ((image, text, 10.0), (image[:1], text[:1], 10.0)):
        mask = np.zeros(len(arguments[0]), bool) if len(arguments[0]) > 1 else None
        loss, grads = softmax_loss_and_grads(*arguments, mask=mask)
        assert float(loss) == 0
        assert not any(np.asarray(g).any() for g in grads)


@FEW
@given(b=st.integers(1, 70), tile=st.integers(1, 70), scale=st.floats(0.0, 100.0, width=32))
def test_identical_embeddings_give_log_b(b, tile, scale):
    same = np.full((b, 4), 0.5, np.float32)
    np.testing.assert_allclose(softmax_loss(same, same, scale, tile=tile), np.log(b), rtol=1e-5, atol=1e-6)


@FEW
@given(seed=st.integers(0, 99))
def test_permuting_pairs_permutes_gradients(oracle, seed):
    image, text = oracle.embeds(seed, 21)
    order = np.random.default_rng(seed).permutation(21)
    loss, grads = softmax_loss_and_grads(image, text, 10.0, tile=8)
    permuted, permuted_grads = softmax_loss_and_grads(image[order], text[order], 10.0, tile=8)
    np.testing.assert_allclose(permuted, loss, rtol=1e-5)
    for got, want in zip(permuted_grads[:2], grads[:2], strict=True):
        np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-4, atol=1e-6)


@FEW
@given(seed=st.integers(0, 99))
def test_rotating_both_sides_and_swapping_towers_change_nothing(oracle, seed):
    image, text = oracle.embeds(seed, 21)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(24, 24)))[0].astype(np.float32)
    want = softmax_loss(image, text, 10.0)
    np.testing.assert_allclose(softmax_loss(image @ rotation, text @ rotation, 10.0, tile=8), want, rtol=1e-5)
    np.testing.assert_allclose(softmax_loss(text, image, 10.0, tile=8), want, rtol=1e-5)


def test_distinct_ids_equal_none(oracle):
    image, text = oracle.embeds(0, 20)
    ids = np.arange(20)
    got = softmax_loss(image, text, 10.0, image_ids=ids, text_ids=ids, tile=8)
    np.testing.assert_allclose(got, softmax_loss(image, text, 10.0), rtol=1e-6)


def test_float64_gradient_by_finite_differences(oracle):
    with jax.enable_x64(True):
        image, text = oracle.embeds(0, 9, 5, dtype=np.float64)
        loss = lambda *args: softmax_loss(*args, tile=4, text_ids=np.arange(9) % 4, label_smoothing=0.1)  # noqa: E731
        check_grads(loss, (image, text, 7.0), order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)
