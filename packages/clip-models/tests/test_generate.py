from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import clip_models
from clip_models import (
    ClipConfig,
    ComputeConfig,
    DecoderConfig,
    PreprocessConfig,
    VisionConfig,
    generate,
    init,
    logical_axes,
)
from clip_models.generate import likeliest
from clip_models.params import flatten
from clip_models.positions import rotation
from clip_models.towers import bind_decoder

caption_logits = jax.jit(clip_models.caption_logits, static_argnums=0)

VISION = VisionConfig(image_size=16, patch_size=4, width=24, num_layers=1, num_heads=2, pool="gap")
PLAIN = DecoderConfig(
    vocab_size=18, max_length=7, width=16, num_layers=2, num_heads=2, mask_token_id=3, tied_embedding=True
)
CAPPA = replace(
    PLAIN,
    positions="rotary",
    block="normformer",
    activation=("gelu_tanh", "linear"),
    norm="rmsnorm",
    norm_bias=False,
    use_bias=False,
    qk_norm=True,
    layer_scale=0.5,
    parallel_fraction=0.5,
    tied_embedding=False,
)


@pytest.fixture
def config() -> ClipConfig:
    return ClipConfig(vision=VISION, decoder=CAPPA)


both = pytest.mark.parametrize(
    "config", [ClipConfig(vision=VISION, decoder=d) for d in (PLAIN, CAPPA)], ids=["plain", "cappa"]
)


@pytest.fixture
def captions() -> np.ndarray:
    return np.random.default_rng(3).integers(4, 18, (3, 7))


@pytest.fixture
def image() -> tuple[jax.Array, jax.Array]:
    """Hidden vectors of pictures, the last of which is shorter."""
    vectors = np.random.default_rng(4).normal(size=(3, 5, 24)).astype(np.float32)
    return jnp.asarray(vectors), jnp.arange(5) < jnp.array([[5], [5], [2]])


@both
def test_cached_logits_are_those_without_a_cache(config, params, captions, image):
    hidden, image_mask = image
    decoder = bind_decoder(config, params)
    expected = jax.jit(lambda: decoder(captions, hidden, image_mask=image_mask))()
    step = jax.jit(lambda tokens, index, cache: decoder.step(tokens, index, cache, image_mask=image_mask))
    cache = decoder.start(hidden, captions.shape[1])
    for i in range(captions.shape[1]):
        logits, cache = step(captions[:, i], jnp.int32(i), cache)
        np.testing.assert_allclose(logits, expected[:, i], rtol=1e-5, atol=1e-5)


def as_written(config, logits):
    """The likeliest tokens, up to each caption's end, then padding."""
    tokens = np.asarray(logits.argmax(-1))
    ends = tokens == config.decoder.eos_token_id
    return np.where(np.cumsum(ends, axis=1) - ends > 0, config.decoder.pad_token_id, tokens)


def test_greedy_captions_are_the_likeliest_step_by_step(config, params, pixel_values):
    captions = generate(config, params, pixel_values)
    assert captions.dtype == jnp.int32
    expected, ended = np.zeros((3, 7), np.int32), np.zeros(3, bool)
    for i in range(7):
        token = caption_logits(config, params, pixel_values, expected)[:, i].argmax(-1)
        expected[:, i] = np.where(ended, config.decoder.pad_token_id, token)
        ended |= token == config.decoder.eos_token_id
    np.testing.assert_array_equal(captions, expected)


def test_captions_end(config, params, pixel_values):
    images = np.tile(pixel_values, (11, 1, 1, 1))
    captions = np.asarray(generate(config, params, images, temperature=100.0, key=jax.random.key(0)))
    ends = captions == config.decoder.eos_token_id
    assert 3 < ends.any(1).sum() < 30  # of words drawn almost evenly, a third of the captions has the end among them
    assert ends.sum(1).max() == 1
    after = np.cumsum(ends, axis=1) - ends > 0
    assert (captions[after] == config.decoder.pad_token_id).all()


def test_drawn_tokens_are_among_the_likeliest(config, params, pixel_values):
    greedy = generate(config, params, pixel_values)
    options = {"top_k": 17, "key": jax.random.key(1)}
    for likeliest_alone in ({"temperature": 1e-6, "top_p": 1.0}, {"temperature": 1.0, "top_p": 1e-6}):
        drawn = generate(config, params, pixel_values, **options, **likeliest_alone)
        np.testing.assert_array_equal(drawn, greedy)
    options |= {"temperature": 5.0, "top_p": 0.9}
    one, same, other = (
        generate(config, params, pixel_values, **{**options, "key": jax.random.key(seed)}) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_tokens_are_drawn_by_their_probabilities(config, params, pixel_values):
    images = np.tile(pixel_values[:1], (4000, 1, 1, 1))
    drawn = generate(config, params, images, max_length=1, temperature=3.0, top_k=9, key=jax.random.key(2))
    logits = caption_logits(config, params, pixel_values[:1], np.zeros((1, 7), np.int32))[:, 0]
    expected = np.asarray(jax.nn.softmax(likeliest(logits / 3.0, top_k=9, top_p=None)[0]))
    assert (expected > 0).sum() == 9
    shares = np.bincount(np.asarray(drawn)[:, 0], minlength=18) / len(images)
    # within five standard deviations of a share
    np.testing.assert_array_less(np.abs(shares - expected), 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9)


def test_likeliest():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    for options, kept in (
        ({"top_k": None, "top_p": None}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": None}, [1, 3]),
        ({"top_k": None, "top_p": 0.4 - 1e-6}, [1]),
        ({"top_k": None, "top_p": 0.65}, [1, 3]),
        ({"top_k": None, "top_p": 0.75}, [1, 2, 3]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),  # of 0.4, 0.3 and 0.2, 7/9 of the whole is in the first two
    ):
        assert np.flatnonzero(np.isfinite(likeliest(logits, **options)[0])).tolist() == kept


def test_tokens_see_what_is_before_them(config, params, pixel_values, captions):
    before = caption_logits(config, params, pixel_values, captions)
    assert before.shape == (3, 7, 18)
    changed = captions.copy()
    changed[:, 3] = 4 + (captions[:, 3] - 3) % 14
    after = caption_logits(config, params, pixel_values, changed)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before - after)[:, 4:].max(-1).min() > 1e-3
    features = clip_models.image_features(config, params, pixel_values)
    np.testing.assert_allclose(before, caption_logits(config, params, None, captions, features=features), atol=1e-5)
    other_image = caption_logits(config, params, pixel_values[::-1].copy(), captions)
    assert np.abs(before - other_image)[0].max(-1).min() > 1e-3


def test_parallel_prediction_sees_the_image_alone(config, params, pixel_values, captions):
    causal = caption_logits(config, params, pixel_values, captions)
    parallel = caption_logits(config, params, pixel_values, captions, parallel=np.ones(3, bool))
    blind = caption_logits(config, params, pixel_values, np.zeros_like(captions), parallel=np.ones(3, bool))
    np.testing.assert_allclose(parallel, blind, atol=1e-5)
    assert np.abs(np.diff(parallel, axis=1)).max(-1).min() > 1e-3  # places differ
    # every position sees every other: the first changes with the number of those behind it
    shorter = caption_logits(config, params, pixel_values, captions[:, :4], parallel=np.ones(3, bool))
    assert np.abs(shorter[:, 0] - parallel[:, 0]).max() > 1e-4
    mixed = caption_logits(config, params, pixel_values, captions, parallel=np.array([True, False, True]))
    np.testing.assert_allclose(
        mixed, jnp.where(np.array([True, False, True])[:, None, None], parallel, causal), atol=1e-5
    )


def test_a_key_draws_what_is_predicted_in_parallel(config, params, pixel_values, captions):
    causal, parallel = (
        caption_logits(config, params, pixel_values, captions, parallel=np.full(3, flag)) for flag in (False, True)
    )
    drawn = np.stack(
        [caption_logits(config, params, pixel_values, captions, key=jax.random.key(seed)) for seed in range(8)]
    )
    is_causal, is_parallel = (np.abs(drawn - logits).max((-2, -1)) < 1e-5 for logits in (causal, parallel))
    assert (is_causal ^ is_parallel).all()
    assert 4 < is_parallel.sum() < 20
    assert not np.array_equal(is_parallel[0], is_parallel[1]) or not np.array_equal(is_parallel[0], is_parallel[2])


@pytest.mark.parametrize(
    ("decoder", "parallel", "dtype"),
    [
        (replace(CAPPA, positions="learnt", use_bias=True, norm_bias=True), [False, False, False], "float32"),
        (replace(PLAIN, dropout=0.1, attention_dropout=0.1, drop_path=0.1), [True, False, False], "bfloat16"),
    ],
    ids=["causal", "tied, some in parallel, with a key, bfloat16"],
)
def test_every_parameter_has_a_gradient(random_params, pixel_values, captions, decoder, parallel, dtype):
    config = ClipConfig(vision=VISION, decoder=decoder, compute=ComputeConfig(dtype=dtype))
    params = random_params(config)
    options = {"parallel": np.array(parallel), "key": jax.random.key(1) if decoder.dropout else None}

    def loss(params):
        logits = caption_logits(config, params, pixel_values, captions, **options)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), captions[..., None], axis=-1).mean()

    gradients = flatten(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    # a key's bias shifts all logits of a softmax alike, so its gradient is zero but for rounding
    zero = [name for name, g in gradients.items() if np.abs(g).max() < 1e-7 and not name.endswith("key/bias")]
    assert zero == []


def test_the_scan_is_the_loop(config, params, captions, image):
    """The decoder's stack, by its twin: each block's weights taken out, one call each."""
    hidden, image_mask = image
    parallel = np.array([True, False, False])
    decoder = bind_decoder(config, params)
    positions = jnp.arange(captions.shape[1])
    mask = (positions[:, None] >= positions) | parallel[:, None, None, None]

    def looped():
        graphdef, layers = nnx.split(decoder.blocks)
        x = jnp.take(params["decoder"]["token_embedding"], captions, axis=0)
        for i in range(config.decoder.num_layers):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers))
            turned = rotation(positions[None], config.decoder.head_dim, config.decoder.rotary_base)
            x = block(x, image=hidden, image_mask=image_mask[:, None, None], mask=mask, rotation=turned)
        return decoder.norm(x) @ params["decoder"]["head"]["kernel"]

    scanned = jax.jit(lambda: decoder(captions, hidden, image_mask=image_mask, parallel=parallel))()
    np.testing.assert_allclose(scanned, jax.jit(looped)(), rtol=1e-5, atol=1e-5)


def test_training_drops_by_its_key(config, params, pixel_values, captions):
    decoder = replace(CAPPA, parallel_fraction=0.0, dropout=0.2, attention_dropout=0.2, drop_path=0.2)
    config = replace(config, decoder=decoder)
    one, same, other = (
        caption_logits(config, params, pixel_values, captions, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.isfinite(one).all()
    assert not np.allclose(one, other, atol=1e-2)


def test_padding_of_images_has_no_influence(config, random_params, captions):
    config = replace(
        config, vision=replace(VISION, flexible=True), preprocess=PreprocessConfig(resize_mode="naflex", max_patches=9)
    )
    params = random_params(config)
    patches = np.random.default_rng(5).normal(size=(3, 9, 48)).astype(np.float32)
    shapes = np.array([[3, 3], [2, 4], [1, 2]])
    mask = np.arange(9) < shapes.prod(1, keepdims=True)
    inputs = {"pixel_attention_mask": mask.astype(np.int32), "spatial_shapes": shapes}
    clean, dirty = (np.where(mask[..., None], patches, padding) for padding in (0, 9))
    before, after = (caption_logits(config, params, images, captions, **inputs) for images in (clean, dirty))
    np.testing.assert_allclose(before, after, atol=1e-5)
    greedy = np.asarray(generate(config, params, dirty, **inputs))
    logits = caption_logits(config, params, clean, greedy, **inputs)
    np.testing.assert_array_equal(greedy, as_written(config, logits))


def test_bfloat16_gives_float32_logits(config, params, pixel_values, captions):
    half = replace(config, compute=ComputeConfig(dtype="bfloat16"))
    logits = caption_logits(half, params, pixel_values, captions)
    assert logits.dtype == jnp.float32
    expected = caption_logits(config, params, pixel_values, captions)
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99


@both
def test_every_dim_has_a_name(config):
    shapes = flatten(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    axes = flatten(logical_axes(config))
    assert {name: len(names) for name, names in axes.items()} == {name: leaf.ndim for name, leaf in shapes.items()}
    assert axes["decoder/blocks/cross_attention/key/kernel"] == ("layers", "embed", "heads")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 8}, r"in \[1, decoder.max_length=7\]; got 8"),
        ({"temperature": -1.0}, "must not be negative"),
        ({"temperature": float("nan"), "key": None}, "must not be negative; got nan"),
        ({"temperature": 1.0}, "give a key"),
        ({"top_k": 3}, "at temperature=0 none is drawn"),
        ({"temperature": 1.0, "top_k": 99, "key": None}, r"in \[1, vocab_size=18\]; got 99"),
        ({"temperature": 1.0, "top_p": 0.0}, r"in \(0, 1\]"),
    ],
)
def test_wrong_options_are_refused(config, params, pixel_values, options, message):
    with pytest.raises(ValueError, match=message):
        generate(config, params, pixel_values, **options)


def test_what_is_missing_is_said(siglip, random_params, pixel_values, captions):
    with pytest.raises(ValueError, match=r"config\.decoder is None"):
        generate(siglip, random_params(siglip), pixel_values)
    with pytest.raises(ValueError, match=r"config\.decoder is None"):
        clip_models.caption_logits(siglip, random_params(siglip), pixel_values, captions)
    config = ClipConfig(vision=VISION, decoder=replace(PLAIN, mask_token_id=None))
    params = random_params(config)
    with pytest.raises(ValueError, match=r"reads decoder\.mask_token_id"):
        clip_models.caption_logits(config, params, pixel_values, captions, parallel=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"at most decoder.max_length = 7 tokens; got \[3, 14\]"):
        clip_models.caption_logits(config, params, pixel_values, np.tile(captions, 2))
    outside = np.where(np.arange(7) == 2, -1, captions)  # it is read for the fourth token and those after it
    logits = caption_logits(config, params, pixel_values, outside)
    assert np.isnan(logits[:, 3:]).all()
