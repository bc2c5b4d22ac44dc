import pytest

from clip_models import num_params, preset, presets

# Millions, as open_clip lists them (docs/model_profile.csv).
PUBLISHED = {
    "vit-b-32": 151.28,
    "vit-b-16": 149.62,
    "vit-l-14": 427.62,
    "vit-l-14-336": 427.94,
    "siglip-b-16-224": 203.16,
    "siglip-b-16-256": 203.20,
    "siglip-b-16-384": 203.45,
    "siglip-b-16-512": 203.79,
    "siglip-l-16-256": 652.15,
    "siglip-l-16-384": 652.48,
    "siglip-so400m-14-224": 877.36,
    "siglip-so400m-14-384": 877.96,
}


def test_every_preset_has_a_published_count():
    assert set(presets()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    assert round(num_params(preset(name)) / 1e6, 2) == PUBLISHED[name]


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ValueError, match="'siglip-b16-224'; did you mean siglip-b-16-224"):
        preset("siglip-b16-224")
