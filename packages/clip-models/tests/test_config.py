import dataclasses

import pytest

from clip_models import ClipConfig, ComputeConfig, PreprocessConfig, TextConfig, VisionConfig

VISION = {"image_size": 32, "patch_size": 8, "width": 128, "num_layers": 2}
TEXT = {"vocab_size": 10, "max_length": 8, "width": 128, "num_layers": 2}


def test_defaults_are_filled_in():
    config = ClipConfig(vision=VisionConfig(**VISION), text=TextConfig(**TEXT, num_heads=4, mlp_dim=100))
    assert (config.vision.num_heads, config.vision.mlp_dim) == (2, 512)
    assert (config.text.num_heads, config.text.mlp_dim) == (4, 100)
    assert (config.preprocess.size, config.preprocess.text_length) == (32, 8)
    assert config.embed_dim == 128
    assert dataclasses.replace(config, projection_dim=64).embed_dim == 64
    assert config == ClipConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    hash(config)


def test_token_count():
    assert VisionConfig(**VISION).num_tokens == 16
    assert VisionConfig(**VISION, pool="cls").num_tokens == 17
    assert VisionConfig(**{**VISION, "image_size": 37}).num_tokens == 16


def test_lists_become_tuples():
    assert PreprocessConfig(mean=[0, 0.5, 1]).mean == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(**{**VISION, "width": 0}), "width must be at least 1; got 0"),
        (lambda: VisionConfig(**{**VISION, "width": 96}), "width = 96 is not a multiple of 64: give num_heads"),
        (lambda: VisionConfig(**VISION, num_heads=5), "multiple of num_heads; got width=128, num_heads=5"),
        (lambda: VisionConfig(**VISION, mlp_dim=-1), "mlp_dim must not be negative.*got -1"),
        (lambda: VisionConfig(**VISION, norm_eps=0), "norm_eps must be positive; got 0"),
        (
            lambda: VisionConfig(**VISION, activation="gleu"),
            "activation must be one or several of gelu, .*; got 'gleu'",
        ),
        (lambda: VisionConfig(**VISION, initialization="he"), "initialization must be one of siglip, clip; got 'he'"),
        (lambda: VisionConfig(**{**VISION, "patch_size": 33}), "got patch_size=33, image_size=32"),
        (lambda: VisionConfig(**VISION, pool="token"), "pool must be one of map, gap, cls; got 'token'"),
        (lambda: TextConfig(**TEXT, pool="eos"), "pool must be one of last, argmax, first_eos, map, gap; got 'eos'"),
        (lambda: TextConfig(**TEXT, pool="first_eos"), "eos_token_id, which is None"),
        (lambda: TextConfig(**TEXT, eos_token_id=10), r"in \[0, vocab_size=10\); got 10"),
        (lambda: PreprocessConfig(resize_mode="crop"), "resize_mode must be one of squash, .*; got 'crop'"),
        (lambda: PreprocessConfig(std=(1, 0, 1)), r"std must be positive.*got \(1.0, 0.0, 1.0\)"),
        (lambda: PreprocessConfig(mean=(1, 2)), r"mean must have one number per channel.*got \(1.0, 2.0\)"),
        (lambda: ComputeConfig(dtype="float16"), "dtype must be one of float32, bfloat16; got 'float16'"),
        (lambda: ComputeConfig(unroll=0), "unroll must be at least 1; got 0"),
        (lambda: joined(projection_dim=0), "projection_dim must be at least 1; got 0"),
        (lambda: joined(preprocess=PreprocessConfig(size=31)), "vision.image_size = 32, or 0; got 31"),
        (lambda: joined(preprocess=PreprocessConfig(text_length=9)), "max_length of the text, 8; got 9"),
    ],
)
def test_a_bad_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def joined(**fields):
    return ClipConfig(vision=VisionConfig(**VISION), text=TextConfig(**TEXT), **fields)
