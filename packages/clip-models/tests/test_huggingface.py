import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_models
from clip_models import load_config, load_pretrained, preprocess_images

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
    clip = load_config(FIXTURES / "clip-argmax")
    assert (clip.preprocess.resize_mode, clip.preprocess.interpolation) == ("shortest", "bicubic")
    assert clip.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (clip.text.pool, clip.preprocess.text_length) == ("argmax", 10)
    siglip = load_config(FIXTURES / "siglip")
    assert (siglip.preprocess.resize_mode, siglip.preprocess.interpolation) == ("squash", "bilinear")
    assert siglip.preprocess.mean == (0.5, 0.5, 0.5)


def test_an_oldest_layout_of_the_image_processor(tmp_path):
    directory = shutil.copytree(FIXTURES / "clip-first-eos", tmp_path / "model")
    old = {"size": 20, "crop_size": 20, "do_center_crop": True, "resample": 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(old))
    assert load_config(directory) == load_config(FIXTURES / "clip-first-eos")
    (directory / "preprocessor_config.json").write_text(json.dumps({**old, "size": 24}))
    with pytest.raises(ValueError, match="one size; got size=24, crop_size=20"):
        load_config(directory)


def test_gemma_s_tokenizer_is_given_lower_case(tmp_path):
    directory = shutil.copytree(FIXTURES / "siglip", tmp_path / "model")
    assert load_config(directory).preprocess.tokenizer is None
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    preprocess = load_config(directory).preprocess
    assert (preprocess.tokenizer, preprocess.lower_case) == (str(directory), True)


def tower_alone(full: Path, to: Path, *, part: str, projected: bool, prefixed: bool) -> Path:
    """What transformers saves of one tower of a model."""
    to.mkdir()
    contents = json.loads((full / "config.json").read_text())
    config = contents[f"{part}_config"]
    if projected:
        config = {**config, "projection_dim": contents["projection_dim"]}
    (to / "config.json").write_text(json.dumps(config))
    prefix, projection = f"{part}_model.", {"vision": "visual", "text": "text"}[part] + "_projection"
    tensors = {
        name if prefixed else name.removeprefix(prefix): tensor
        for name, tensor in load_file(full / "model.safetensors").items()
        if name.startswith(prefix) or (projected and name.startswith(projection))
    }
    save_file(tensors, to / "model.safetensors")
    return to


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("name", ["clip-first-eos", "siglip"])
def test_a_tower_alone(tmp_path, name, part, prefixed):
    full, params = load_pretrained(FIXTURES / name)
    directory = tower_alone(FIXTURES / name, tmp_path / part, part=part, projected=False, prefixed=prefixed)
    config, tower = load_pretrained(directory)
    other = "text" if part == "vision" else "vision"
    assert getattr(config, part) == getattr(full, part)
    assert getattr(config, other) is None
    assert load_config(directory) == config
    if name != "siglip":
        params[part].pop("projection")
    jax.tree.map(np.testing.assert_array_equal, tower, {part: params[part]})


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_tower_with_its_projection(tmp_path, part):
    full, params = load_pretrained(FIXTURES / "clip-first-eos")
    directory = tower_alone(FIXTURES / "clip-first-eos", tmp_path / part, part=part, projected=True, prefixed=True)
    config, tower = load_pretrained(directory)
    assert config.embed_dim == full.embed_dim
    jax.tree.map(np.testing.assert_array_equal, tower, {part: params[part]})


@pytest.mark.parametrize("name", ["clip-first-eos", "siglip"])
def test_of_a_classifier_the_tower_is_taken(tmp_path, name):
    full, params = load_pretrained(FIXTURES / name)
    directory = shutil.copytree(FIXTURES / name, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("vision_model.")}
    tensors["classifier.weight"], tensors["classifier.bias"] = np.zeros((5, 12), np.float32), np.zeros(5, np.float32)
    save_file(tensors, directory / "model.safetensors")
    contents = json.loads((directory / "config.json").read_text())
    contents["architectures"] = [contents["architectures"][0].replace("Model", "ForImageClassification")]
    (directory / "config.json").write_text(json.dumps(contents))
    with pytest.warns(UserWarning, match=r"a head, .* left out: classifier.bias \[5\], classifier.weight \[5, 12\]"):
        config, tower = load_pretrained(directory)
    assert (config.vision, config.text) == (full.vision, None)
    params["vision"].pop("projection", None)
    jax.tree.map(np.testing.assert_array_equal, tower, {"vision": params["vision"]})


def test_shards_and_their_index(tmp_path):
    tensors = load_file(FIXTURES / "siglip" / "model.safetensors")
    shutil.copy(FIXTURES / "siglip" / "config.json", tmp_path)
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        shard = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, tmp_path / shard)
        weight_map |= dict.fromkeys(names[i::3], shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path)[1], load_pretrained(FIXTURES / "siglip")[1])
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=r"lists model-00003-of-00003.safetensors, which .* has not"):
        load_pretrained(tmp_path)
