from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_models
from clip_models import ClipConfig, ComputeConfig, TextConfig, VisionConfig
from clip_models.dropout import choose_patches, drop_path, dropout
from clip_models.params import flatten

VISION = {"image_size": 16, "patch_size": 4, "width": 16, "num_layers": 3, "num_heads": 2, "pool": "gap"}
MODEL = ClipConfig(
    vision=VisionConfig(**VISION),
    text=TextConfig(vocab_size=20, max_length=6, width=16, num_layers=3, num_heads=2, mlp_dim=24),
)


def test_the_mean_stays():
    x = jnp.full((400, 3, 50), 2.0)
    for dropped in (dropout(x, 0.25, jax.random.key(0)), drop_path(x, jnp.float32(0.25), jax.random.key(1))):
        assert np.unique(dropped.round(4)).tolist() == [0, np.float32(2 / 0.75).round(4)]
        np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.06)
    assert (np.ptp(drop_path(x, jnp.float32(0.5), jax.random.key(0)), axis=(1, 2)) == 0).all()  # whole samples


def test_patches_are_drawn_for_each_image_and_padding_last():
    mask = np.arange(20) < np.array([[20], [10], [4]])
    chosen = choose_patches(jax.random.key(0), (3, 20), 0.5, mask)
    assert chosen.shape == (3, 10)
    assert (np.diff(chosen, axis=1) > 0).all()
    assert chosen[1].tolist() == list(range(10))
    assert chosen[2, :4].tolist() == [0, 1, 2, 3]
    assert not np.array_equal(chosen[0], chosen[1])


@pytest.mark.parametrize(
    "option",
    [{"dropout": 0.5}, {"attention_dropout": 0.5}, {"drop_path": 0.5}, {"patch_dropout": 0.5}],
    ids=lambda option: next(iter(option)),
)
def test_drops_by_key_alone(option, random_params):
    tower = {name: value for name, value in option.items() if name != "patch_dropout"}
    config = replace(
        MODEL, vision=VisionConfig(**VISION, **option, positions="rotary"), text=replace(MODEL.text, **tower)
    )
    plain = replace(config, vision=VisionConfig(**VISION, positions="rotary"), text=MODEL.text)
    params = random_params(config)
    x, ids = np.random.default_rng(0).normal(size=(3, 16, 16, 3)), np.random.default_rng(1).integers(0, 20, (3, 6))

    @jax.jit
    def embeds(key):
        output = clip_models.apply(config, params, pixel_values=x, input_ids=ids, key=key)
        return output.image_embeds, output.text_embeds

    first, again, other = (embeds(jax.random.key(seed)) for seed in (0, 0, 1))
    without = jax.jit(lambda: clip_models.apply(plain, params, pixel_values=x, input_ids=ids))()
    none = embeds(None)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(none, (without.image_embeds, without.text_embeds), atol=1e-5)
    for side in (0, 1) if tower else (0,):
        assert not np.allclose(first[side], other[side], atol=1e-3)
        assert not np.allclose(first[side], none[side], atol=1e-3)


def test_patch_dropout_computes_less():
    config = replace(MODEL, vision=VisionConfig(**VISION, patch_dropout=0.75))
    params = jax.eval_shape(lambda: clip_models.init(config, jax.random.key(0)))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    hidden = jax.eval_shape(
        lambda p, x, k: clip_models.image_features(config, p, x, key=k), params, x, jax.random.key(0)
    )
    assert hidden.hidden.shape == (2, 4, 16)


def test_a_key_costs_nothing_where_nothing_is_dropped():
    params = jax.eval_shape(lambda: clip_models.init(MODEL, jax.random.key(0)))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

    def num_operations(key):
        run = jax.jit(lambda p, x: clip_models.encode_image(MODEL, p, x, key=key))
        return run.lower(params, x).compile().as_text().count(" = ")  # the lines around them say where each is from

    assert num_operations(jax.random.key(0)) == num_operations(None)


def test_gradients_drop_what_the_forward_pass_drops(random_params):
    """Everything is dropped at once; what is computed again for the backward pass is dropped as before."""
    rates = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1}
    config = replace(
        MODEL, vision=VisionConfig(**VISION, **rates, patch_dropout=0.25), text=replace(MODEL.text, **rates)
    )
    params = random_params(config)
    x, ids = np.random.default_rng(0).normal(size=(3, 16, 16, 3)), np.random.default_rng(1).integers(0, 20, (3, 6))
    weights = np.random.default_rng(2).normal(size=(3, 3))

    def gradients(remat):
        computed = replace(config, compute=ComputeConfig(remat=remat))

        def loss(params):
            output = clip_models.apply(computed, params, pixel_values=x, input_ids=ids, key=jax.random.key(5))
            return jnp.sum(weights * output.logits_per_image)

        return flatten(jax.jit(jax.grad(loss))(params))

    kept, again = gradients("none"), gradients("full")
    for name, gradient in kept.items():
        assert np.isfinite(gradient).all()
        # a key's bias shifts all logits of a softmax alike, so its gradient is zero but for rounding
        assert np.abs(gradient).max() > 1e-7 or name.endswith("key/bias"), name
        np.testing.assert_allclose(again[name], gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max() + 1e-6)
