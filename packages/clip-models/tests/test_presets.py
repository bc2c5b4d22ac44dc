import pytest

from clip_models import num_params, preset, presets

# Millions. open_clip's listing (docs/model_profile.csv) has the vit-… and the first siglip-…; those of SigLIP 2 are the
# counts of keras_hub's listing (siglip_presets.py) less the position indices that it counts, one a patch and token.
PUBLISHED = {
    "vit-b-32": 151.28,
    "vit-b-16": 149.62,
    "vit-l-14": 427.62,
    "vit-l-14-336": 427.94,
    "vit-h-14": 986.11,
    "vit-g-14": 1366.68,
    "vit-bigg-14": 2539.57,
    "siglip-b-16-224": 203.16,
    "siglip-b-16-256": 203.20,
    "siglip-b-16-384": 203.45,
    "siglip-b-16-512": 203.79,
    "siglip-b-16-256-i18n": 370.63,
    "siglip-l-16-256": 652.15,
    "siglip-l-16-384": 652.48,
    "siglip-so400m-14-224": 877.36,
    "siglip-so400m-14-384": 877.96,
    "siglip-so400m-16-256-i18n": 1128.76,
    "siglip2-b-32-256": 376.86,
    "siglip2-b-16-224": 375.19,
    "siglip2-b-16-256": 375.23,
    "siglip2-b-16-384": 375.48,
    "siglip2-b-16-512": 375.82,
    "siglip2-l-16-256": 881.53,
    "siglip2-l-16-384": 881.85,
    "siglip2-l-16-512": 882.31,
    "siglip2-so400m-14-224": 1135.46,
    "siglip2-so400m-14-384": 1136.01,
    "siglip2-so400m-16-256": 1135.67,
    "siglip2-so400m-16-384": 1136.04,
    "siglip2-so400m-16-512": 1136.56,
    "siglip2-g-opt-16-256": 1871.39,
    "siglip2-g-opt-16-384": 1871.89,
    "siglip2-b-16-naflex": 375.23,
    "siglip2-so400m-16-naflex": 1135.67,
}


def blocks(width: int, num_layers: int, mlp_dim: int, *, products: int, scales: int, attentions: int = 1) -> int:
    return num_layers * (4 * attentions * width**2 + products * width * mlp_dim + scales)


def clip_jax(text: tuple[int, int, int], vision: tuple[int, int, int], embed_dim: int, *, products: int = 3) -> int:
    """NormFormer's norm after attention has the only scales, and nothing has a bias."""
    towers = sum(blocks(*tower, products=products, scales=tower[0]) for tower in (text, vision))
    return towers + 50048 * text[0] + 768 * vision[0] + (text[0] + vision[0]) * embed_dim + 2


# clip-jax gives no counts; these follow from its table of dims.
DERIVED = {
    "clip-jax-tiny": clip_jax((256, 2, 512), (256, 2, 512), 128),
    "clip-jax-small": clip_jax((512, 5, 1024), (512, 5, 1024), 512, products=2),
    "clip-jax-base": clip_jax((512, 12, 2048), (768, 12, 3072), 512),
    "clip-jax-large": clip_jax((768, 12, 2048), (1024, 24, 2688), 768),
    "clip-jax-huge": clip_jax((1024, 20, 3072), (1024, 30, 3072), 1024),
    # patches, rows and columns, registers; the decoder's tokens and head; heads of 64 have scales for queries and keys
    "cappa-large-16": (768 + 32 + 8) * 1024
    + blocks(1024, 24, 3072, products=3, scales=2 * 64)
    + 2 * 65536 * 1024
    + blocks(1024, 12, 3072, products=3, scales=4 * 64, attentions=2),
}


def test_every_preset_is_here():
    assert sorted(presets()) == sorted([*PUBLISHED, *DERIVED])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    assert round(num_params(preset(name)) / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("name", DERIVED)
def test_derived_parameter_count(name):
    assert num_params(preset(name)) == DERIVED[name]


def test_inputs_are_those_of_the_published_weights():
    clip, siglip = preset("vit-l-14-336").preprocess, preset("siglip-so400m-14-224").preprocess
    assert (clip.size, clip.resize_mode, clip.text_length, clip.lower_case) == (336, "shortest", 77, False)
    assert (siglip.size, siglip.resize_mode, siglip.text_length, siglip.lower_case) == (224, "squash", 16, False)
    naflex = preset("siglip2-so400m-16-naflex").preprocess
    assert (naflex.resize_mode, naflex.max_patches, naflex.lower_case) == ("naflex", 256, True)
    assert naflex.tokenizer == "google/siglip2-so400m-patch16-naflex"


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ValueError, match="'siglip-b16-224'; did you mean siglip-b-16-224"):
        preset("siglip-b16-224")
