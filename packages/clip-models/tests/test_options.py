"""Every architecture option, alone and combined: finite gradients that are not zero; what padding may not change."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_models
from clip_models import ClipConfig, ComputeConfig, DecoderConfig, TextConfig, VisionConfig
from clip_models.params import flatten

VISION = {"image_size": 16, "patch_size": 4, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}
TEXT = {"vocab_size": 20, "max_length": 6, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}
NORMFORMER = {"block": "normformer", "norm": "rmsnorm", "use_bias": False}
IMAGES = {
    "clip-jax base": {**NORMFORMER, "activation": ("relu", "linear"), "positions": "sincos2d", "pool": "gap"},
    "clip-jax large": {
        **NORMFORMER,
        "activation": ("gelu", "linear"),
        "positions": "factorized",
        "num_registers": 2,
        "qk_norm": True,
        "num_queries": 3,
    },
    "modern": {
        "norm": "rmsnorm",
        "activation": ("silu", "linear"),
        "positions": "rotary",
        "qk_norm": True,
        "layer_scale": 0.1,
        "num_registers": 1,
        "class_token": True,
        "image_size": (16, 24),
    },
    "dino": {"pool": "cls", "final_norm": "hidden", "num_registers": 1, "keep_registers": True, "layer_scale": 1.0},
    "bare": {"norm_scale": False, "norm_bias": False, "pool": "gap", "class_token": True, "embed_norm": True},
    "odd": {"block": "normformer", "activation": ("sigmoid", "tanh", "gelu"), "final_norm": "pooled", "num_queries": 2},
}
TEXTS = {
    "rotary, gap": {"positions": "rotary", "pool": "gap", "qk_norm": True, "causal": True},
    "clip-jax": {**NORMFORMER, "positions": "rotary", "pool": "map", "activation": ("gelu", "linear")},
    "map": {"pool": "map", "num_queries": 2, "layer_scale": 0.1},
}
# These pool one token, which masks and cuts of the padding may take away.
TOKENS = {
    "first eos": {"pool": "first_eos", "eos_token_id": 19, "positions": "rotary", "qk_norm": True, "layer_scale": 0.1},
    "argmax": {"pool": "argmax", "norm": "rmsnorm", "activation": ("silu", "linear"), "causal": True},
    "last": {**NORMFORMER, "activation": ("mish", "elu")},
}


class Alone(NamedTuple):
    """An option, and what it alone, or after those that it needs, adds to the arrays of a tower, or takes away."""

    tower: str
    options: dict
    more: int = 0
    names: tuple[str, ...] = ()
    needs: dict = {}  # noqa: RUF012 (nobody changes it)


def in_every_tower(options: dict, vision: int, text: int, decoder: int, names=(), needs=None) -> list[Alone]:
    more = {"vision": vision, "text": text, "decoder": decoder}
    return [Alone(tower, options, number, names, needs or {}) for tower, number in more.items()]


ALONE = [
    *in_every_tower({"norm": "rmsnorm"}, -4, -3, -4),
    *in_every_tower({"norm_scale": False}, -4, -3, -4),
    *in_every_tower({"norm_bias": False}, -4, -3, -4),
    *in_every_tower({"norm_eps": 0.1}, 0, 0, 0),
    *in_every_tower({"block": "normformer"}, 6, 4, 6, ("blocks/attention_norm/bias", "blocks/mlp/norm/scale")),
    *in_every_tower({"use_bias": False}, -12, -6, -10),
    *in_every_tower({"activation": ["silu", "linear"]}, 4, 2, 2, ("blocks/mlp/fc1_2/kernel",)),
    *in_every_tower({"qk_norm": True}, 4, 2, 4, ("blocks/attention/query_norm/scale",)),
    *in_every_tower({"layer_scale": 0.1}, 2, 2, 3, ("blocks/layer_scale1", "blocks/layer_scale2")),
    *in_every_tower({"positions": "rotary"}, -1, -1, -1),
    *in_every_tower({"rotary_base": 100.0}, 0, 0, 0, needs={"positions": "rotary"}),
    Alone("vision", {"positions": "factorized"}, 1, ("position_embedding/rows", "position_embedding/columns")),
    Alone("vision", {"positions": "sincos2d"}, -1),
    Alone("vision", {"pool": "gap"}, -15),
    Alone("vision", {"num_queries": 2}),
    Alone("vision", {"class_token": True}, 1, ("class_embedding",)),
    Alone("vision", {"num_registers": 2}, 1, ("registers",)),
    Alone("vision", {"keep_registers": True}, needs={"num_registers": 2}),
    Alone("vision", {"final_norm": "pooled"}),
    Alone("vision", {"embed_norm": True}, 2, ("embed_norm/scale", "embed_norm/bias")),
    Alone("vision", {"projection_bias": True}, 1, ("projection/bias",)),
    Alone("vision", {"patch_bias": False}, -1),
    Alone("text", {"causal": True}),
    Alone("text", {"pool": "argmax"}),
    Alone("text", {"pool": "first_eos", "eos_token_id": 3}),
    Alone("text", {"pool": "gap"}),
    Alone("text", {"pool": "map"}, 15, ("map_head/probe",)),
    Alone("text", {"num_queries": 2}, needs={"pool": "map"}),
    Alone("text", {"projection_bias": False}, -1),
    Alone("decoder", {"tied_embedding": True}, -1),
]


def vision_model(**options) -> ClipConfig:
    return ClipConfig(vision=VisionConfig(**{**VISION, **options}), projection_dim=8)


def text_model(**options) -> ClipConfig:
    return ClipConfig(text=TextConfig(**{**TEXT, **options}), projection_dim=8)


def pixels(config: ClipConfig, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, *config.vision.image_shape, 3)).astype(np.float32)


def token_ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 20, (4, 6))


def assert_every_parameter_learns(loss, params):
    gradients = flatten(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    # a key's bias shifts all logits of a softmax alike, so its gradient is zero but for rounding
    zero = [name for name, g in gradients.items() if np.abs(g).max() < 1e-7 and not name.endswith("key/bias")]
    assert zero == []


def captioner(**options) -> ClipConfig:
    return replace(vision_model(pool="gap"), decoder=DecoderConfig(**{**TEXT, **options}))


MODELS = {"vision": vision_model, "text": text_model, "decoder": captioner}


def run(tower: str, config: ClipConfig, params):
    """The outputs that say what a tower is: embeddings and hidden vectors, or logits."""
    if tower == "decoder":
        return clip_models.caption_logits(config, params, pixels(config), token_ids()[:3])
    inputs = {"pixel_values": pixels(config)} if tower == "vision" else {"input_ids": token_ids()}
    return clip_models.apply(config, params, **inputs)


@pytest.mark.parametrize("option", ALONE, ids=lambda option: f"{option.tower} {option.options}")
def test_an_option_alone(option):
    """Its parameters are there under their names, and the program that uses them can be made, and is another."""
    model = MODELS[option.tower]
    default, config = model(**option.needs), model(**option.needs, **option.options)
    defaults, params = (jax.eval_shape(lambda c=c: clip_models.init(c, jax.random.key(0))) for c in (default, config))
    arrays = flatten(params[option.tower])
    assert len(arrays) - len(flatten(defaults[option.tower])) == option.more
    assert set(option.names) <= arrays.keys()
    assert flatten(clip_models.logical_axes(config)).keys() == flatten(params).keys()
    usual, program = (
        jax.make_jaxpr(lambda p, c=c: run(option.tower, c, p))(p) for c, p in ((default, defaults), (config, params))
    )
    assert program.out_avals[0].shape == usual.out_avals[0].shape
    assert str(program) != str(usual)


@pytest.mark.parametrize("options", IMAGES.values(), ids=IMAGES.keys())
def test_gradients_of_an_image_tower(options, random_params):
    config = vision_model(**options)
    x, weights = pixels(config), np.random.default_rng(1).normal(size=(3, 8))
    assert_every_parameter_learns(
        lambda p: jnp.sum(weights * clip_models.encode_image(config, p, x)), random_params(config)
    )


@pytest.mark.parametrize("options", [*TEXTS.values(), *TOKENS.values()], ids=[*TEXTS, *TOKENS])
def test_gradients_of_a_text_tower(options, random_params):
    config = text_model(**options)
    ids, weights = token_ids(), np.random.default_rng(1).normal(size=(4, 8))
    assert_every_parameter_learns(
        lambda p: jnp.sum(weights * clip_models.encode_text(config, p, ids)), random_params(config)
    )


@pytest.mark.parametrize("options", TEXTS.values(), ids=TEXTS.keys())
def test_masked_tokens_change_nothing(options, random_params):
    config = text_model(**options)
    params, ids, mask = random_params(config), token_ids(), np.ones((4, 6), int)
    mask[:, 4:] = 0
    encode = jax.jit(lambda ids, mask: clip_models.text_features(config, params, ids, mask))
    changed = np.where(mask, ids, 7)
    before, after = encode(ids, mask), encode(changed, mask)
    np.testing.assert_allclose(before.hidden[:, :4], after.hidden[:, :4], atol=1e-5)
    np.testing.assert_allclose(before.pooled, after.pooled, atol=1e-5)
    np.testing.assert_allclose(before.pooled, encode(ids[:, :4], mask[:, :4]).pooled, atol=1e-4, rtol=1e-4)


FLEXIBLE = {
    "siglip2": {},
    "factorized, gap": {"positions": "factorized", "pool": "gap", "class_token": True},
    "sincos2d, kept registers": {"positions": "sincos2d", "num_registers": 2, "keep_registers": True, "num_queries": 2},
    "rotary, cls": {"positions": "rotary", "pool": "cls", "num_registers": 1},
}


@pytest.mark.parametrize("options", FLEXIBLE.values(), ids=FLEXIBLE.keys())
def test_a_sequence_of_patches_is_its_image(options, random_params):
    """Images of two sizes, as they are and as one batch of padded sequences."""
    config = vision_model(**options, flexible=True)
    params = random_params(config)
    features = jax.jit(lambda x, **k: clip_models.image_features(config, params, x, **k))
    rng = np.random.default_rng(0)
    grids = np.array([[2, 6], [5, 3]])
    images = [rng.normal(size=(1, 4 * h, 4 * w, 3)).astype(np.float32) for h, w in grids]
    sequences = rng.normal(size=(2, 18, 48)).astype(np.float32)  # rubbish where nothing is written
    for sequence, image, (h, w) in zip(sequences, images, grids, strict=True):
        sequence[: h * w] = image.reshape(h, 4, w, 4, 3).transpose(0, 2, 1, 3, 4).reshape(h * w, 48)
    mask = None if options else np.arange(18) < grids.prod(1)[:, None]
    batch = features(sequences, spatial_shapes=grids, pixel_attention_mask=mask)
    for i, image in enumerate(images):
        alone = features(image)
        np.testing.assert_allclose(batch.pooled[i], alone.pooled[0], atol=1e-4, rtol=1e-4)
        num = alone.hidden.shape[1]
        np.testing.assert_allclose(batch.hidden[i, :num], alone.hidden[0], atol=1e-4, rtol=1e-4)


def test_gradients_of_sequences_of_patches(random_params):
    config = vision_model(flexible=True, positions="factorized", num_registers=1)
    x, grids = np.random.default_rng(0).normal(size=(3, 9, 48)).astype(np.float32), np.array([[3, 3], [2, 4], [1, 2]])
    weights = np.random.default_rng(1).normal(size=(3, 8))
    assert_every_parameter_learns(
        lambda p: jnp.sum(weights * clip_models.encode_image(config, p, x, spatial_shapes=grids)), random_params(config)
    )


def test_an_empty_sequence_is_finite(random_params):
    config = vision_model(flexible=True)
    params = random_params(config)
    x, shapes = np.ones((2, 5, 48), np.float32), np.array([[0, 0], [1, 5]])

    def loss(params):
        return clip_models.encode_image(config, params, x, spatial_shapes=shapes).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_registers_change_what_is_seen_but_not_what_is_returned(random_params):
    config = vision_model(num_registers=2, pool="gap")
    params, x = random_params(config), pixels(config)
    features = jax.jit(lambda p: clip_models.image_features(config, p, x))
    before = features(params)
    params["vision"]["registers"] *= -1
    after = features(params)
    assert before.hidden.shape == after.hidden.shape == (3, 16, 16)
    assert not np.allclose(before.pooled, after.pooled, atol=1e-2)


def test_float32_logits_are_float32(random_params):
    """In bfloat16, products of queries and keys are float32 from the start on request, and only then."""

    def logits_dtype(float32_logits):
        compute = ComputeConfig(dtype="bfloat16", float32_logits=float32_logits, attention="xla")
        config = replace(vision_model(num_layers=1, pool="gap"), compute=compute)
        params = jax.eval_shape(lambda: clip_models.init(config, jax.random.key(0)))
        x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        text = str(jax.make_jaxpr(lambda p, x: clip_models.image_features(config, p, x))(params, x))
        # of [b, heads, tokens, tokens] there are the logits, then the weights
        return [line.split(":")[1][:3] for line in text.splitlines() if "[2,2,16,16] = dot_general" in line]

    assert logits_dtype(float32_logits=True) == ["f32"]
    assert logits_dtype(float32_logits=False) == ["bf1"]


def test_one_tower_alone(random_params):
    images, texts = vision_model(), ClipConfig(text=TextConfig(**TEXT))
    assert random_params(images).keys() == {"vision"}
    assert "projection" not in random_params(texts)["text"]
    output = jax.jit(lambda p: clip_models.apply(texts, p, input_ids=token_ids()))(random_params(texts))
    assert output.text_embeds.shape == (4, 16)
    assert output.logit_scale is None
    with pytest.raises(ValueError, match="images need an image tower"):
        clip_models.apply(texts, random_params(texts), pixel_values=pixels(images))
    with pytest.raises(ValueError, match="texts need a text tower"):
        clip_models.encode_text(images, random_params(images), token_ids())


def test_wrong_images_say_what_arrived(random_params):
    fixed, flexible = vision_model(), vision_model(flexible=True)
    params, x = random_params(fixed), np.zeros((2, 5, 48), np.float32)

    def encode(config, x, **inputs):
        return clip_models.encode_image(config, params, x, **inputs)

    with pytest.raises(ValueError, match=r"\[batch, 16, 16, 3\].*sequences.*\[2, 5, 48\].*flexible=True"):
        encode(fixed, x, spatial_shapes=np.ones((2, 2), int))
    with pytest.raises(ValueError, match=r"need spatial_shapes.*\[2, 2\]; got None"):
        encode(flexible, x)
    with pytest.raises(ValueError, match=r"patch_size² · 3 = 48 values.*got \[2, 5, 47\]"):
        encode(flexible, x[..., :47], spatial_shapes=np.ones((2, 2), int))
    with pytest.raises(ValueError, match=r"one number per patch, \[2, 5\]; got \[2, 4\]"):
        encode(flexible, x, spatial_shapes=np.ones((2, 2), int), pixel_attention_mask=np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"spatial_shapes is of sequences.*images, \[1, 16, 16, 3\]"):
        encode(flexible, np.zeros((1, 16, 16, 3), np.float32), spatial_shapes=np.ones((1, 2), int))
    with pytest.raises(ValueError, match=r"height, width, 3\].*or sequences.*got \[1, 3, 16, 3\]"):
        encode(flexible, np.zeros((1, 3, 16, 3), np.float32))
