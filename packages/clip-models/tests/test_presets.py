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
UNPUBLISHED = [*(f"clip-jax-{size}" for size in ("tiny", "small", "base", "large", "huge")), "cappa-large-16"]


def test_every_preset_is_here():
    assert sorted(presets()) == sorted([*PUBLISHED, *UNPUBLISHED])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    assert round(num_params(preset(name)) / 1e6, 2) == PUBLISHED[name]


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
