import dataclasses

import pytest

from clip_models import ClipConfig, ComputeConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.config import DecoderConfig

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


def test_what_follows_from_the_kind_of_norm_and_pool():
    assert (VisionConfig(**VISION).norm_bias, VisionConfig(**VISION, norm="rmsnorm").norm_bias) == (True, False)
    cls = VisionConfig(**VISION, pool="cls")
    assert (cls.class_token, cls.final_norm, VisionConfig(**VISION).final_norm) == (True, "pooled", "hidden")
    assert VisionConfig(**VISION, num_queries=3).pooled_dim == 3 * 128
    wide = VisionConfig(**{**VISION, "image_size": [32, 64]}, num_registers=2)
    assert (wide.grid, wide.num_tokens, wide.image_size) == ((4, 8), 34, (32, 64))
    assert VisionConfig(**{**VISION, "image_size": (32, 32)}).image_size == 32
    alone = ClipConfig(text=TextConfig(**TEXT))
    assert (alone.embed_dim, alone.text_projection_dim, alone.has_logits) == (128, None, False)


def test_lists_become_tuples():
    assert VisionConfig(**VISION, activation=["silu", "linear"]).activations == ("silu", "linear")
    assert VisionConfig(**VISION, activation=["silu"]).activation == "silu"
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
        (lambda: VisionConfig(**VISION, activation=()), "activation must name at least one function"),
        (
            lambda: VisionConfig(**VISION, activation=("silu", "line")),
            r"one or several of gelu, .*; got \('silu', 'line'\)",
        ),
        (lambda: VisionConfig(**VISION, norm="batch"), "norm must be one of layernorm, rmsnorm; got 'batch'"),
        (lambda: VisionConfig(**VISION, block="post"), "block must be one of pre_norm, normformer; got 'post'"),
        (lambda: VisionConfig(**VISION, layer_scale=0), "layer_scale must be positive, or None.*got 0"),
        (lambda: VisionConfig(**VISION, drop_path=1), r"drop_path must be in \[0, 1\); got 1"),
        (lambda: VisionConfig(**VISION, rotary_base=1), "rotary_base must be above 1; got 1"),
        (lambda: VisionConfig(**{**VISION, "image_size": (32, 4)}), r"got patch_size=8, image_size=\(32, 4\)"),
        (lambda: VisionConfig(**{**VISION, "image_size": (32, 4, 1)}), r"side or a \(height, width\).*\(32, 4, 1\)"),
        (lambda: VisionConfig(**VISION, positions="learned"), "positions must be one of learnt, .*; got 'learned'"),
        (lambda: VisionConfig(**VISION, positions="rotary", num_heads=64), "multiple of 4; got 128 / 64 = 2"),
        (lambda: VisionConfig(**{**VISION, "width": 6}, num_heads=1, positions="sincos2d"), "from 8 up; got 6"),
        (lambda: VisionConfig(**VISION, pool="cls", class_token=False), "takes the class token; got class_token=False"),
        (lambda: VisionConfig(**VISION, pool="gap", num_queries=2), "probes of pool='map'; got 2 with 'gap'"),
        (lambda: VisionConfig(**VISION, keep_registers=True), "num_registers is 0: give their number"),
        (lambda: VisionConfig(**VISION, final_norm="last"), "final_norm must be one of auto, .*; got 'last'"),
        (lambda: VisionConfig(**VISION, patch_dropout=-0.1), r"patch_dropout must be in \[0, 1\); got -0.1"),
        (lambda: TextConfig(**TEXT, num_queries=2), "probes of pool='map'; got 2 with 'last'"),
        (lambda: TextConfig(**TEXT, positions="rotary", num_heads=128), "multiple of 2; got 128 / 128 = 1"),
        (lambda: TextConfig(**TEXT, positions="sincos2d"), "positions must be one of learnt, rotary; got 'sincos2d'"),
        (lambda: DecoderConfig(**TEXT, parallel_fraction=0.5), "mask_token_id everywhere, which is None"),
        (lambda: DecoderConfig(**TEXT, parallel_fraction=2, mask_token_id=3), r"in \[0, 1\]; got 2"),
        (lambda: PreprocessConfig(size=(3, -3)), r"size must be a side or a \(height, width\), not negative"),
        (lambda: ComputeConfig(remat="some"), "remat must be one of none, minimal, proj, full, offload; got 'some'"),
        (lambda: ComputeConfig(attention="flash"), "attention must be one of auto, .*; got 'flash'"),
        (lambda: ClipConfig(), "a vision tower, a text tower or both; got neither"),
        (lambda: ClipConfig(text=TextConfig(**TEXT), decoder=DecoderConfig(**TEXT)), "sees; got vision=None"),
        (lambda: joined(compute=ComputeConfig(attention="cudnn")), "computes in bfloat16; got dtype='float32'"),
        (
            lambda: joined(compute=ComputeConfig(attention="splash"), text=TextConfig(**TEXT, attention_dropout=0.1)),
            "drops no attention weights.*text without attention_dropout; got 0.1",
        ),
        (
            lambda: joined(
                compute=ComputeConfig(attention="cudnn", dtype="bfloat16"), text=TextConfig(**TEXT, num_heads=32)
            ),
            "text has 128 / 32 = 4",
        ),
        (lambda: joined(vision=VisionConfig(**VISION, projection_bias=True)), "there is none: give projection_dim"),
        (lambda: joined(preprocess=PreprocessConfig(resize_mode="naflex")), "vision.flexible must be true"),
        (
            lambda: joined(preprocess=PreprocessConfig(max_patches=9)),
            "naflex sequences; got 9 with resize_mode='squash'",
        ),
        (lambda: joined(projection_dim=0), "projection_dim must be at least 1; got 0"),
        (lambda: joined(preprocess=PreprocessConfig(size=31)), "vision.image_size = 32, or 0; got 31"),
        (lambda: joined(preprocess=PreprocessConfig(text_length=9)), "max_length of text and decoder, 8; got 9"),
        (
            lambda: joined(decoder=captioner(max_length=5), preprocess=PreprocessConfig(text_length=6)),
            "max_length of text and decoder, 5; got 6",
        ),
        (
            lambda: joined(compute=ComputeConfig(attention="splash"), decoder=captioner(parallel_fraction=0.5)),
            "parallel prediction does not: use 'auto'.*got 0.5",
        ),
        (lambda: VisionConfig(**{**VISION, "width": "128"}), "width must be a whole number; got '128'"),
        (lambda: VisionConfig(**{**VISION, "width": 128.0}), "width must be a whole number; got 128.0"),
        (lambda: VisionConfig(**{**VISION, "num_layers": True}), "num_layers must be a whole number; got True"),
        (
            lambda: VisionConfig(**{**VISION, "image_size": None}),
            "image_size must be a whole number or a list of whole n",
        ),
        (lambda: VisionConfig(**VISION, use_bias="no"), "use_bias must be true or false; got 'no'"),
        (lambda: VisionConfig(**VISION, layer_scale="1"), "layer_scale must be a number or None; got '1'"),
        (lambda: VisionConfig(**VISION, dropout=False), "dropout must be a number; got False"),
        (lambda: PreprocessConfig(mean=0.5), "mean must be a list of numbers; got 0.5"),
        (lambda: PreprocessConfig(tokenizer=7), "tokenizer must be a string or None; got 7"),
        (lambda: ClipConfig(vision={**VISION}), "vision must be a VisionConfig or None; got {'image_size': 32"),
    ],
)
def test_a_bad_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_are_as_long_as_all_that_read_them_allow():
    assert joined(decoder=captioner(max_length=5)).preprocess.text_length == 5
    assert joined(decoder=captioner(max_length=9)).preprocess.text_length == 8


def captioner(**fields):
    return DecoderConfig(**{**TEXT, "mask_token_id": 3, **fields})


def joined(**fields):
    return ClipConfig(**{"vision": VisionConfig(**VISION), "text": TextConfig(**TEXT), **fields})
