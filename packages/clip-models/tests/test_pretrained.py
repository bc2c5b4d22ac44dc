import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_models
from clip_models import load_pretrained, num_params, preprocess_images, save_pretrained
from clip_models.params import flatten

FIXTURES = Path(__file__).parent / "fixtures"
HUGGING_FACE = ["clip-argmax", "clip-first-eos", "siglip"]


def assert_close(value, expected):
    """Within 1e-5 of the largest entry."""
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_computes_what_pytorch_computes(name):
    config, params = load_pretrained(FIXTURES / name)
    golden = np.load(FIXTURES / name / "golden.npz")
    pixel_values = preprocess_images(config, [golden[f"picture_{i}"] for i in range(3)])
    assert_close(pixel_values.transpose(0, 3, 1, 2), golden["pixel_values"])

    output = jax.jit(clip_models.apply, static_argnums=0)(
        config,
        params,
        pixel_values=pixel_values,
        input_ids=golden["input_ids"],
        attention_mask=golden.get("attention_mask"),
    )
    for field in ("image_hidden", "text_hidden", "image_embeds", "text_embeds", "logits_per_image"):
        assert_close(getattr(output, field), golden[field])


def test_reads_both_layouts_of_the_image_processor():
    clip, _ = load_pretrained(FIXTURES / "clip-argmax")
    assert (clip.preprocess.resize_mode, clip.preprocess.interpolation) == ("shortest", "bicubic")
    assert clip.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (clip.text.pool, clip.preprocess.text_length) == ("argmax", 10)
    siglip, _ = load_pretrained(FIXTURES / "siglip")
    assert (siglip.preprocess.resize_mode, siglip.preprocess.interpolation) == ("squash", "bilinear")
    assert siglip.preprocess.mean == (0.5, 0.5, 0.5)


def test_an_oldest_layout_of_the_image_processor(tmp_path):
    directory = shutil.copytree(FIXTURES / "clip-first-eos", tmp_path / "model")
    old = {"size": 20, "crop_size": 20, "do_center_crop": True, "resample": 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(old))
    config, _ = load_pretrained(directory)
    assert config == load_pretrained(FIXTURES / "clip-first-eos")[0]
    (directory / "preprocessor_config.json").write_text(json.dumps({**old, "size": 24}))
    with pytest.raises(ValueError, match="one square; got size=24, crop_size=20"):
        load_pretrained(directory)


def test_tensors_that_do_not_fit_are_listed_together(tmp_path):
    directory = shutil.copytree(FIXTURES / "siglip", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors["vision_model.head.probe"]
    tensors["text_model.surprise"] = np.zeros(3, np.float32)
    tensors["text_model.encoder.layers.2.mlp.fc1.weight"] = np.zeros((20, 11), np.float32)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match="those of the config") as error:
        load_pretrained(directory)
    assert str(error.value).splitlines()[1:] == [
        "  missing vision_model.head.probe [1, 1, 12]",
        "  extra text_model.surprise [3]",
        "  misshapen text_model.encoder.layers.2.mlp.fc1.weight: expected [20, 12], got [20, 11]",
    ]


def test_half_precision_weights_become_float32(tmp_path):
    directory = shutil.copytree(FIXTURES / "siglip", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    save_file({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, directory / "model.safetensors")
    params = load_pretrained(directory)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_our_format_is_bit_identical(config, params, tmp_path):
    config = dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, tokenizer="some/where"))
    save_pretrained(tmp_path / "new" / "model", config, params)
    loaded_config, loaded = load_pretrained(tmp_path / "new" / "model")
    assert loaded_config == config
    assert flatten(loaded).keys() == flatten(params).keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_hugging_face_to_ours_and_back(tmp_path):
    config, params = load_pretrained(FIXTURES / "siglip")
    save_pretrained(tmp_path, config, params)
    loaded_config, loaded = load_pretrained(tmp_path)
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert num_params(config) == sum(t.size for t in load_file(FIXTURES / "siglip" / "model.safetensors").values())


def test_half_a_model_is_not_saved(siglip, tmp_path, random_params):
    params = random_params(siglip)
    del params["text"]
    with pytest.raises(ValueError, match="missing text/token_embedding"):
        save_pretrained(tmp_path / "model", siglip, params)
    assert not (tmp_path / "model").exists()


def test_an_unknown_field_is_answered_with_the_nearest(siglip, tmp_path, random_params):
    save_pretrained(tmp_path, siglip, random_params(siglip))
    contents = json.loads((tmp_path / "config.json").read_text())
    contents["config"]["vision"]["patchsize"] = contents["config"]["vision"].pop("patch_size")
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="vision has no field 'patchsize'; did you mean patch_size"):
        load_pretrained(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs config.json; .* has none"):
        load_pretrained(tmp_path)
    shutil.copy(FIXTURES / "siglip" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"clip-jax, clip or siglip; .* says 'bert'"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a directory nor a repository's name"):
        load_pretrained(tmp_path / "nowhere")


def test_a_repository_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nobody/nothing is not a local directory, and it could not be fetched"):
        load_pretrained("nobody/nothing")


def test_a_repository_is_its_own_tokenizer(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, allow_patterns: str(FIXTURES / "siglip"))
    config, _ = load_pretrained("google/some-siglip")
    assert config.preprocess.tokenizer == "google/some-siglip"
