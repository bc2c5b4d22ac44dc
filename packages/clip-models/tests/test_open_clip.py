import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import clip_models
from clip_models import load_config, load_pretrained, preset, save_pretrained
from clip_models.formats import open_clip

FIXTURES = Path(__file__).parent / "fixtures"
NATIVE = ["open-clip", "open-clip-average"]


def assert_computes(directory, config, params):
    golden = np.load(directory / "golden.npz")
    output = clip_models.apply(
        config, params, pixel_values=golden["pixel_values"].transpose(0, 2, 3, 1), input_ids=golden["input_ids"]
    )
    for name in ("image_hidden", "text_hidden", "image_embeds", "text_embeds"):
        np.testing.assert_allclose(getattr(output, name), golden[name], rtol=0, atol=1e-5 * np.abs(golden[name]).max())


@pytest.mark.parametrize("name", NATIVE)
def test_computes_what_open_clip_computes(name):
    config, params = load_pretrained(FIXTURES / name)
    assert load_config(FIXTURES / name) == config
    assert_computes(FIXTURES / name, config, params)


def test_siglip_s_tower_of_timm(tmp_path):
    directory = shutil.copytree(FIXTURES / "open-clip-siglip", tmp_path / "model")
    contents = json.loads((directory / "open_clip_config.json").read_text())
    contents["model_cfg"]["embed_dim"] = 768
    (directory / "open_clip_config.json").write_text(json.dumps(contents))
    named = load_config(directory)
    assert (named.vision.width, named.vision.mlp_dim, named.projection_dim) == (768, 3072, None)
    assert (named.vision.activation, named.text.activation) == ("gelu", "gelu_tanh")
    # the fixture's dims are not those of its name
    tiny = dataclasses.replace(named.vision, width=12, num_layers=2, num_heads=3, mlp_dim=20, patch_size=6)
    config = dataclasses.replace(named, vision=tiny)
    assert_computes(directory, *load_pretrained(directory, config=config))


def test_the_config_says_what_the_file_does():
    config = load_config(FIXTURES / "open-clip")
    assert config.vision.image_size == (20, 14)
    assert (config.text.pool, config.text.eos_token_id, config.logit_bias_init) == ("first_eos", 29, None)
    preprocess = config.preprocess
    assert (preprocess.resize_mode, preprocess.interpolation, preprocess.mean) == (
        "longest",
        "bilinear",
        (0.4, 0.5, 0.6),
    )
    assert preprocess.tokenizer == "openai/clip-vit-base-patch32"
    assert load_config(FIXTURES / "open-clip-average").logit_bias_init == -7.5


@pytest.mark.parametrize("name", NATIVE)
def test_there_and_back_is_bit_identical(tmp_path, name):
    config, params = load_pretrained(FIXTURES / name)
    save_pretrained(tmp_path, config, params, format="open_clip")
    theirs = load_file(FIXTURES / name / "open_clip_model.safetensors")
    ours = load_file(tmp_path / "open_clip_model.safetensors")
    assert ours.keys() == {key.removeprefix("text.") for key in theirs}
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key.removeprefix("text.")], tensor)
    loaded_config, loaded = load_pretrained(tmp_path / "open_clip_model.safetensors")
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    expected = json.loads((FIXTURES / name / "open_clip_config.json").read_text())
    written = json.loads((tmp_path / "open_clip_config.json").read_text())
    for part in ("vision_cfg", "text_cfg"):
        wanted = expected["model_cfg"][part]
        for key, value in wanted.items():
            if key == "mlp_ratio":
                assert int(wanted["width"] * written["model_cfg"][part][key]) == int(wanted["width"] * value)
            else:
                assert written["model_cfg"][part][key] == value
    assert written["preprocess_cfg"] == expected["preprocess_cfg"]


def test_auto_takes_open_clip_where_hugging_face_cannot(tmp_path):
    config, params = load_pretrained(FIXTURES / "open-clip-average")
    with pytest.raises(ValueError, match=r"siglip cannot express .*vision.pool = 'gap', vision.class_token = True"):
        save_pretrained(tmp_path / "model", config, params, format="huggingface")
    save_pretrained(tmp_path / "model", config, params, format="auto")
    assert (tmp_path / "model" / "open_clip_model.safetensors").is_file()
    assert 'create_model_and_transforms("local-dir:DIRECTORY")' in (tmp_path / "model" / "README.md").read_text()


def test_published_architectures_are_expressible():
    assert open_clip.find_losses(preset("vit-b-32")) == []
    assert open_clip.find_losses(preset("siglip2-so400m-16-256")) == []
    assert open_clip.find_losses(preset("siglip2-b-16-naflex")) == ["preprocess.resize_mode = 'naflex'"]
    # timm's tower of this name has exact GELU
    assert open_clip.find_losses(preset("siglip-b-16-224")) == ["vision.activation = 'gelu_tanh'"]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm_model_name must be one of SigLIP's"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNets are not known here"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg has options that are not known here: attentional_pool"),
        ("vision_cfg", {"global_average_pool": True}, "vision_cfg has options that are not known.*global_average_pool"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "text_cfg has options that are not known here: hf_model_name"),
        ("text_cfg", {"pool_type": "first"}, "pool_type of text_cfg must be one of argmax, last, eos; got 'first'"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, part, changes, message):
    directory = shutil.copytree(FIXTURES / "open-clip", tmp_path / "model")
    contents = json.loads((directory / "open_clip_config.json").read_text())
    contents["model_cfg"][part] |= {"timm_pool": "map", **changes} if part == "vision_cfg" else changes
    (directory / "open_clip_config.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=message):
        load_config(directory)


def test_other_options_of_the_tokenizer_are_said():
    contents = json.loads((FIXTURES / "open-clip" / "open_clip_config.json").read_text())
    contents["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "some/bert", "tokenizer_mode": "clips"}
    contents["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower", "strip_sep_token": True}
    with pytest.warns(
        UserWarning, match="strip_sep_token = True, tokenizer_mode = 'clips': prepare texts with open_cl"
    ):
        open_clip.config.read_config(contents)


@pytest.mark.parametrize(
    ("clean", "lower_case", "canonicalize"), [("lower", True, False), ("canonicalize", True, True)]
)
def test_how_texts_are_cleaned_travels(clean, lower_case, canonicalize):
    contents = json.loads((FIXTURES / "open-clip" / "open_clip_config.json").read_text())
    built_in = open_clip.config.read_config(contents)
    assert (built_in.preprocess.pad_id, built_in.preprocess.canonicalize) == (0, False)
    cleaning = {"hf_tokenizer_name": "some/t5", "tokenizer_kwargs": {"clean": clean}}
    contents["model_cfg"]["text_cfg"] |= cleaning
    config = open_clip.config.read_config(contents)
    preprocess = config.preprocess
    assert (preprocess.pad_id, preprocess.lower_case, preprocess.canonicalize) == (None, lower_case, canonicalize)
    assert cleaning.items() <= open_clip.config.write_config(config)["model_cfg"]["text_cfg"].items()
