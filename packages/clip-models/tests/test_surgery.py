from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_models
from clip_models import DecoderConfig, PreprocessConfig, init, surgery
from clip_models.params import flatten, shapes

encode_image = jax.jit(clip_models.encode_image, static_argnums=0)
encode_text = jax.jit(clip_models.encode_text, static_argnums=0)
KEY = jax.random.key(7)


def assert_fits(config, params):
    assert shapes(params) == shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []


def changed(before, after):
    """Names of the arrays that are new or not what they were."""
    before, after = flatten(before), flatten(after)
    return {name for name in after if name not in before or not np.array_equal(before[name], after[name])}


def test_what_changes_nothing_is_the_identity(config, params):
    for operation in (
        lambda: surgery.resize_images(config, params, config.vision.image_size),
        lambda: surgery.resize_texts(config, params, config.text.max_length),
        lambda: surgery.drop_layers(config, params, "vision", range(config.vision.num_layers)),
    ):
        new_config, new_params = operation()
        assert new_config == config
        assert_same(new_params, params)


def test_resized_images(config, params):
    size = (config.vision.patch_size * 3, config.vision.patch_size * 7)
    new_config, new_params = surgery.resize_images(config, params, size)
    assert new_config.vision.image_size == new_config.preprocess.size == size
    assert_fits(new_config, new_params)
    assert changed(params, new_params) == {"vision/position_embedding"}
    if config.vision.class_token:
        old, new = (tree["vision"]["position_embedding"][0] for tree in (params, new_params))
        np.testing.assert_array_equal(old, new)


def test_resized_images_are_what_a_flexible_tower_sees(siglip, clip, random_params):
    for given, positions in ((clip, "learnt"), (siglip, "factorized")):
        config = replace(given, vision=replace(given.vision, positions=positions, flexible=True))
        params, size = random_params(config), (given.vision.patch_size, given.vision.patch_size * 7)
        pixels = np.random.default_rng(5).normal(size=(2, *size, 3)).astype(np.float32)
        resized = surgery.resize_images(config, params, size)
        assert_fits(*resized)
        np.testing.assert_allclose(encode_image(config, params, pixels), encode_image(*resized, pixels), atol=1e-5)


def test_resampled_positions_lie_between_the_old(siglip, random_params):
    params = random_params(siglip)
    rows, columns = np.mgrid[:4, :4]
    table = params["vision"]["position_embedding"].at[:, 0].set(rows.ravel()).at[:, 1].set(columns.ravel())
    params["vision"]["position_embedding"] = table
    _, new = surgery.resize_images(siglip, params, 32)
    grid = new["vision"]["position_embedding"].reshape(8, 8, -1)
    # a new patch has half the side of an old one, and its centre lies a quarter off
    steps = np.clip(np.arange(8) / 2 - 0.25, 0, 3)
    np.testing.assert_allclose(grid[:, 0, 0], steps, atol=1e-5)
    np.testing.assert_allclose(grid[0, :, 1], steps, atol=1e-5)


def test_resized_texts(siglip, random_params, input_ids):
    config, params, ids = siglip, random_params(siglip), input_ids[:, :4]
    shorter, cut = surgery.resize_texts(config, params, 4)
    assert shorter.text.max_length == shorter.preprocess.text_length == 4
    assert_fits(shorter, cut)
    before, after = encode_text(config, params, ids), encode_text(shorter, cut, ids)
    np.testing.assert_allclose(before, after, atol=1e-5)

    longer, stretched = surgery.resize_texts(config, params, 11)
    assert_fits(longer, stretched)
    assert changed(params, stretched) == {"text/position_embedding"}
    table, old = (np.asarray(tree["text"]["position_embedding"]) for tree in (stretched, params))
    np.testing.assert_allclose(table[[0, 5, 10]], [old[0], (old[2] + old[3]) / 2, old[5]], atol=1e-5)


def test_a_text_length_below_the_longest_stays(siglip, random_params):
    config = replace(siglip, preprocess=PreprocessConfig(text_length=5))
    params = random_params(config)
    assert surgery.resize_texts(config, params, 9)[0].preprocess.text_length == 5
    assert surgery.resize_texts(config, params, 3)[0].preprocess.text_length == 3


def test_a_new_projection(siglip, clip, random_params):
    for config, projection_dim in ((siglip, 14), (clip, None)):
        params = random_params(config)
        new_config, new_params = surgery.new_projection(config, params, projection_dim, KEY)
        assert new_config.embed_dim == (projection_dim or config.vision.width)
        assert_fits(new_config, new_params)
        assert all("/projection/" in name for name in changed(params, new_params))
        assert np.std(new_params["text"]["projection"]["kernel"]) > 0.1
    biased = replace(clip, vision=replace(clip.vision, projection_bias=True))
    assert not surgery.new_projection(biased, random_params(biased), None, KEY)[0].vision.projection_bias


def test_one_tower_alone_gives_what_it_gave(siglip, random_params, pixel_values, input_ids):
    config, params = siglip, random_params(siglip)
    vision_config, vision_params = surgery.only_vision(config, params)
    assert_fits(vision_config, vision_params)
    before, after = encode_image(config, params, pixel_values), encode_image(vision_config, vision_params, pixel_values)
    np.testing.assert_allclose(before, after, atol=1e-5)

    text_config, text_params = surgery.only_text(config, params)
    assert_fits(text_config, text_params)
    before, after = encode_text(config, params, input_ids), encode_text(text_config, text_params, input_ids)
    np.testing.assert_allclose(before, after, atol=1e-5)
    with pytest.raises(ValueError, match="done to an image tower"):
        surgery.only_vision(text_config, text_params)


def test_a_fresh_head_leaves_what_is_below(siglip, clip, random_params):
    params = random_params(siglip)
    new_config, new_params = surgery.fresh_head(siglip, params, "vision", KEY)
    assert new_config == siglip
    assert_fits(siglip, new_params)
    assert {name.split("/")[1] for name in changed(params, new_params)} == {"map_head"}

    new_config, new_params = surgery.fresh_head(clip, random_params(clip), "vision", KEY, pool="map", num_queries=2)
    assert_fits(new_config, new_params)
    assert new_config.vision.class_token
    assert new_config.vision.final_norm == "hidden"
    # the image tower's pooled vector is SigLIP's embedding: with two probes it doubles, and the texts follow
    new_config, new_params = surgery.fresh_head(siglip, random_params(siglip), "vision", KEY, num_queries=2)
    assert_fits(new_config, new_params)
    assert new_config.embed_dim == 48


def test_what_cannot_be_is_said_of_the_model(siglip, random_params):
    params = random_params(siglip)
    with pytest.raises(ValueError, match=r"made without one \(class_token=False\): pool by 'map' or 'gap'"):
        surgery.fresh_head(siglip, params, "vision", KEY, pool="cls")
    with pytest.raises(ValueError, match="tower must be one of vision, text; got 'image'"):
        surgery.fresh_head(siglip, params, "image", KEY)
    with pytest.raises(ValueError, match="tower must be one of vision, text, decoder; got 'image'"):
        surgery.drop_layers(siglip, params, "image", [0])


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_dropping_a_layer_that_does_nothing_changes_nothing(siglip, random_params, tower, pixel_values, input_ids):
    config, params = siglip, random_params(siglip)
    for half in (params[tower]["blocks"]["attention"]["out"], params[tower]["blocks"]["mlp"]["fc2"]):
        for name in half:
            half[name] = half[name].at[1].set(0)
    num_layers = getattr(config, tower).num_layers
    new_config, new_params = surgery.drop_layers(config, params, tower, [i for i in range(num_layers) if i != 1])
    assert_fits(new_config, new_params)
    encode, inputs = (encode_image, pixel_values) if tower == "vision" else (encode_text, input_ids)
    before, after = encode(config, params, inputs), encode(new_config, new_params, inputs)
    np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("keep", [[], [1, 0], [0, 0], [-1], [0, 9]])
def test_layers_to_keep_must_be_there(siglip, random_params, keep):
    with pytest.raises(ValueError, match="increasing indices of the 3 layers of vision"):
        surgery.drop_layers(siglip, random_params(siglip), "vision", keep)


def test_a_tower_from_another_model(siglip, clip, random_params):
    texts = PreprocessConfig(tokenizer="some/words", pad_id=3, canonicalize=True, lower_case=True, mask_padding=True)
    siglip = replace(siglip, preprocess=texts)
    clip = replace(clip, preprocess=PreprocessConfig(resize_mode="shortest", mean=(0.1, 0.2, 0.3)))
    params, others = random_params(siglip), init(clip, jax.random.key(3))
    new_config, new_params = surgery.replace_vision(siglip, params, (clip, others), KEY)
    assert_fits(new_config, new_params)
    assert new_config.vision == clip.vision
    assert new_config.text == siglip.text
    pictures = {"resize_mode": "shortest", "mean": (0.1, 0.2, 0.3)}
    assert new_config.preprocess == replace(siglip.preprocess, **pictures)
    # both are 24 wide, and siglip does not project its images: what the tower pools is the embedding, the texts stay
    assert changed(params, {key: new_params[key] for key in ("text", "logit_scale", "logit_bias")}) == set()
    assert_same(new_params["vision"], {name: part for name, part in others["vision"].items() if name != "projection"})

    text_config, text_params = surgery.only_text(clip, random_params(clip))
    new_config, new_params = surgery.replace_vision(text_config, text_params, (siglip, params), KEY)
    assert_fits(new_config, new_params)
    np.testing.assert_allclose(new_params["logit_scale"], clip.logit_scale_init)
    # a text encoder that is not projected gets a projection
    bare = {name: part for name, part in text_params["text"].items() if name != "projection"}
    bare_config = replace(text_config, projection_dim=None)
    new_config, new_params = surgery.replace_vision(bare_config, {"text": bare}, (siglip, params), KEY)
    assert_fits(new_config, new_params)
    assert new_config.embed_dim == siglip.vision.width


def test_a_decoder_keeps_the_width_it_reads(siglip, random_params):
    config = replace(siglip, decoder=DecoderConfig(vocab_size=9, max_length=6, width=8, num_layers=1, num_heads=1))
    wider = replace(siglip, vision=replace(siglip.vision, width=32))
    with pytest.raises(ValueError, match="of width 24; the other image tower gives 32"):
        surgery.replace_vision(config, {}, (wider, {"vision": {}}), KEY)


def test_nothing_given_is_changed(config, params):
    before = jax.tree.map(jnp.copy, params)
    surgery.resize_images(config, params, 48)
    surgery.new_projection(config, params, 5, KEY)
    surgery.drop_layers(config, params, "text", [0])
    assert_same(before, params)
