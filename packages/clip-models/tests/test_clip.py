from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_models
from clip_models import ComputeConfig, init, num_params

# op by op, compiling would take most of the time
apply = jax.jit(clip_models.apply, static_argnums=0)
encode_image = jax.jit(clip_models.encode_image, static_argnums=0)
encode_text = jax.jit(clip_models.encode_text, static_argnums=0)
image_features = jax.jit(clip_models.image_features, static_argnums=0)
text_features = jax.jit(clip_models.text_features, static_argnums=0)


def test_output_joins_the_two_encoders(config, params, pixel_values, input_ids):
    output = apply(config, params, pixel_values=pixel_values, input_ids=input_ids)

    images = encode_image(config, {"vision": params["vision"]}, pixel_values)
    texts = encode_text(config, {"text": params["text"]}, input_ids)
    assert images.shape == (3, config.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(output.image_embeds, images, atol=1e-5)
    np.testing.assert_allclose(output.text_embeds, texts, atol=1e-5)

    logits = np.exp(params["logit_scale"]) * images @ texts.T + params.get("logit_bias", 0)
    np.testing.assert_allclose(output.logits_per_image, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(output.logits_per_text, output.logits_per_image.T)
    np.testing.assert_allclose(output.logit_scale, np.exp(params["logit_scale"]), rtol=1e-5)
    assert (output.logit_bias is None) == (config.logit_bias_init is None)


def test_one_input_gives_one_side(config, params, input_ids):
    output = apply(config, params, input_ids=input_ids)
    assert output.image_embeds is None
    assert output.logits_per_image is None
    assert output.text_hidden.shape == (4, 6, config.text.width)
    with pytest.raises(ValueError, match="pixel_values, input_ids or both"):
        apply(config, params)


def test_features_are_what_the_projection_takes(config, params, pixel_values, input_ids):
    pooled, hidden, _ = image_features(config, {"vision": params["vision"]}, pixel_values)
    assert pooled.shape == (3, config.vision.width)
    assert hidden.shape == (3, config.vision.num_tokens, config.vision.width)
    if config.projection_dim is not None:
        pooled = pooled @ params["vision"]["projection"]["kernel"]
    embeds = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(embeds, encode_image(config, params, pixel_values), atol=1e-5)

    pooled, hidden, _ = text_features(config, {"text": params["text"]}, input_ids)
    projection = params["text"]["projection"]
    pooled = pooled @ projection["kernel"] + projection.get("bias", 0)
    embeds = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(embeds, encode_text(config, params, input_ids), atol=1e-5)


def test_gap_is_the_mean(clip, pixel_values, random_params):
    config = replace(clip, vision=replace(clip.vision, pool="gap", class_token=None, final_norm="auto"))
    params = random_params(config)
    pooled, hidden, _ = image_features(config, params, pixel_values)
    assert hidden.shape == (3, 4, 24)
    np.testing.assert_allclose(pooled, hidden.mean(1), atol=1e-5)
    norm = params["vision"]["norm"]
    np.testing.assert_allclose(((hidden - norm["bias"]) / norm["scale"]).mean(-1), 0, atol=1e-5)


def test_every_parameter_has_a_gradient(config, params, pixel_values, input_ids):
    weights = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)

    def loss(params):
        return jnp.sum(weights * apply(config, params, pixel_values=pixel_values, input_ids=input_ids).logits_per_image)

    gradients = clip_models.params.flatten(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    # a key's bias shifts all logits of a softmax alike, so its gradient is zero but for rounding
    zero = [name for name, g in gradients.items() if np.abs(g).max() < 1e-7 and not name.endswith("key/bias")]
    assert zero == []


def test_the_zero_embedding_has_finite_gradients(siglip, pixel_values):
    shapes = jax.eval_shape(lambda: init(siglip, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    gradients = jax.jit(jax.grad(lambda p: encode_image(siglip, p, pixel_values).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_bfloat16_is_close_and_parameters_stay_float32(config, params, pixel_values, input_ids):
    half = replace(config, compute=ComputeConfig(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(init(half, jax.random.key(0)))} == {np.dtype("float32")}
    output = apply(half, params, pixel_values=pixel_values, input_ids=input_ids)
    expected = apply(config, params, pixel_values=pixel_values, input_ids=input_ids)
    assert output.image_hidden.dtype == output.text_hidden.dtype == jnp.bfloat16
    assert output.image_embeds.dtype == output.logits_per_image.dtype == jnp.float32
    assert np.sum(output.image_embeds * expected.image_embeds, -1).min() > 0.999
    assert np.sum(output.text_embeds * expected.text_embeds, -1).min() > 0.999


def test_causal_text_does_not_see_what_follows(clip, siglip, input_ids, random_params):
    changed = input_ids.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 18
    for config, same in ((clip, True), (siglip, False)):
        params = random_params(config)
        before, after = (text_features(config, params, ids).hidden[:, :-1] for ids in (input_ids, changed))
        assert np.allclose(before, after, atol=1e-5) is same


def test_masked_tokens_have_no_influence(config, params, input_ids):
    mask = np.ones_like(input_ids)
    mask[:, 4:] = 0
    changed = input_ids.copy()
    changed[:, 4:] = 7
    hidden = [text_features(config, params, ids, mask).hidden[:, :4] for ids in (input_ids, changed)]
    np.testing.assert_allclose(*hidden, atol=1e-5)
    if not config.text.causal:
        unmasked = text_features(config, params, input_ids).hidden[:, :4]
        assert not np.allclose(unmasked, hidden[0], atol=1e-3)


def test_text_pools(clip, input_ids, random_params):
    params = random_params(clip)
    for pool, positions in (("first_eos", [2, 5, 3, 4]), ("argmax", [2, 5, 3, 4]), ("last", [5, 5, 5, 5])):
        config = replace(clip, text=replace(clip.text, pool=pool))
        pooled, hidden, _ = text_features(config, params, input_ids)
        np.testing.assert_array_equal(pooled, hidden[np.arange(4), positions])
    input_ids[:, 1] = 19  # a second, earlier end
    pooled, hidden, _ = text_features(clip, params, input_ids)
    np.testing.assert_array_equal(pooled, hidden[:, 1])


def test_texts_may_be_shorter_than_max_length(config, params, input_ids):
    assert encode_text(config, params, input_ids[:, :3]).shape == (4, config.embed_dim)


def test_init_is_a_function_of_the_key(config):
    params = init(config, jax.random.key(0))
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
    other = init(config, jax.random.key(1))
    assert not np.array_equal(params["text"]["token_embedding"], other["text"]["token_embedding"])
    kernels = params["vision"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


def test_init_has_the_published_scale():
    config = clip_models.ClipConfig(
        vision=clip_models.VisionConfig(image_size=8, patch_size=4, width=256, num_layers=2),
        text=clip_models.TextConfig(
            vocab_size=500, max_length=64, width=256, num_layers=2, initialization="clip", projection_bias=False
        ),
    )
    params = init(config, jax.random.key(0))
    xavier = (2 / (256 + 256)) ** 0.5
    blocks = params["vision"]["blocks"]
    for part in ("query", "key", "value", "out"):
        np.testing.assert_allclose(np.std(blocks["attention"][part]["kernel"]), xavier, rtol=0.02)
    np.testing.assert_allclose(np.std(params["text"]["blocks"]["mlp"]["fc1"]["kernel"]), 512**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(params["text"]["blocks"]["mlp"]["fc2"]["kernel"]), 0.5 / 16, rtol=0.02)
    np.testing.assert_allclose(np.std(params["text"]["token_embedding"]), 0.02, rtol=0.02)
    np.testing.assert_allclose(np.exp(params["logit_scale"]), 10, rtol=1e-5)
    assert params["logit_bias"] == -10


def test_drawing_a_deep_model_takes_little_besides():
    tower = clip_models.TextConfig(vocab_size=8, max_length=4, width=64, num_layers=24, num_heads=2)
    draw = jax.jit(init, static_argnums=0).lower(clip_models.ClipConfig(text=tower), jax.random.key(0)).compile()
    memory = draw.memory_analysis()
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 4


def test_wrong_inputs_say_what_arrived(siglip, pixel_values, input_ids, random_params):
    params = random_params(siglip)
    with pytest.raises(ValueError, match=r"\[batch, 16, 16, 3\].*got \[3, 8, 16, 3\]"):
        encode_image(siglip, params, pixel_values[:, :8])
    with pytest.raises(ValueError, match="normalised floats, got uint8"):
        encode_image(siglip, params, pixel_values.astype(np.uint8))
    with pytest.raises(ValueError, match=r"at most max_length = 6 tokens; got \[4, 12\]"):
        encode_text(siglip, params, np.tile(input_ids, 2))
    with pytest.raises(ValueError, match=r"shape of input_ids, \[4, 6\]; got \[4, 5\]"):
        encode_text(siglip, params, input_ids, np.ones((4, 5)))
    with pytest.raises(ValueError, match="must hold the text tower under 'text'; got the keys"):
        encode_text(siglip, {"vision": params["vision"]}, input_ids)
    for outside in (20, -1):
        assert np.isnan(encode_text(siglip, params, np.full((1, 6), outside))).all()
    with pytest.raises(ValueError, match="attention_mask is of input_ids, which are not given"):
        apply(siglip, params, pixel_values=pixel_values, attention_mask=np.ones((4, 6)))
    for name in ("pixel_attention_mask", "spatial_shapes"):
        with pytest.raises(ValueError, match=f"{name} is of pixel_values, which are not given"):
            apply(siglip, params, input_ids=input_ids, **{name: np.ones((4, 2))})


def test_misnamed_parameters_are_refused(siglip, pixel_values, random_params):
    params = random_params(siglip)
    params["vision"]["patch_embedding"]["weight"] = params["vision"]["patch_embedding"].pop("kernel")
    with pytest.raises(
        ValueError, match=r"(?s)missing patch_embedding/kernel \[48, 24\].*extra patch_embedding/weight"
    ):
        encode_image(siglip, params, pixel_values)


def test_a_jitted_step_calls_no_python(siglip, pixel_values, monkeypatch, random_params):
    params = random_params(siglip)
    step = jax.jit(lambda p, x: encode_image(siglip, p, x))
    step(params, pixel_values)
    monkeypatch.setattr(clip_models.towers.nnx, "merge", None)
    step(params, pixel_values + 1)
