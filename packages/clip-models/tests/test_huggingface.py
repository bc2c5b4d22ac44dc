import json
import re
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_models
from clip_models import PreprocessConfig, load_config, load_pretrained, preprocess_images, save_pretrained, surgery

FIXTURES = Path(__file__).parent / "fixtures"
HUGGING_FACE = ["clip-argmax", "clip-first-eos", "siglip", "siglip2"]


def assert_close(value, expected):
    """Within 1e-5 of the largest entry."""
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_computes_what_pytorch_computes(name):
    config, params = load_pretrained(FIXTURES / name)
    golden = np.load(FIXTURES / name / "golden.npz")
    images = preprocess_images(config, [golden[f"picture_{i}"] for i in range(3)])
    if config.preprocess.resize_mode == "naflex":
        for field, array in images.items():
            assert_close(array, golden[field])
    else:
        assert_close(images.transpose(0, 3, 1, 2), golden["pixel_values"])
        images = {"pixel_values": images}

    output = jax.jit(clip_models.apply, static_argnums=0)(
        config, params, **images, input_ids=golden["input_ids"], attention_mask=golden.get("attention_mask")
    )
    for field in ("image_hidden", "text_hidden", "image_embeds", "text_embeds", "logits_per_image"):
        assert_close(getattr(output, field), golden[field])


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2-registers"])
def test_image_towers_from_elsewhere(name):
    config, params = load_pretrained(FIXTURES / name)
    golden = np.load(FIXTURES / name / "golden.npz")
    output = clip_models.apply(config, params, pixel_values=golden["pixel_values"].transpose(0, 2, 3, 1))
    assert_close(output.image_hidden, golden["image_hidden"])
    pooled = golden["image_hidden"][:, 0]
    assert_close(output.image_embeds, pooled / np.linalg.norm(pooled, axis=-1, keepdims=True))
    assert (config.text, config.embed_dim) == (None, 12)


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


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"do_normalize": False}, "std", (1, 1, 1)),
        ({"do_rescale": False, "image_mean": [51, 102, 204]}, "mean", (0.2, 0.4, 0.8)),
        ({"rescale_factor": 2 / 255, "image_mean": [0.5, 1, 2]}, "mean", (0.25, 0.5, 1)),
        ({"do_resize": False}, "do_resize must be true", None),
        ({"do_center_crop": False}, "do_center_crop must be true", None),
        ({"size": {"longest_edge": 20}}, "size must have height and width, or shortest_edge", None),
        ({"resample": 1}, r"resample must be 2 \(bilinear\) or 3", None),
        ({"image_mean": 0.5}, "a field of another type than its format has", None),
    ],
    ids=str,
)
def test_the_switches_of_the_image_processor(tmp_path, change, field, value):
    directory = shutil.copytree(FIXTURES / "clip-argmax", tmp_path / "model")
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if value is None:
        with pytest.raises(ValueError, match=f"preprocessor_config.json:? .*{field}"):
            load_config(directory)
    else:
        np.testing.assert_allclose(getattr(load_config(directory).preprocess, field), value, rtol=1e-12)


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


TOWERS = {version: json.loads((FIXTURES / "towers" / f"{version}.json").read_text()) for version in (4, 5)}


@pytest.mark.parametrize("name", TOWERS[5])
def test_what_both_versions_of_transformers_save_of_one_tower(tmp_path, name):
    def load(version):
        directory, saved = tmp_path / str(version), TOWERS[version][name]
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(saved["config"]))
        tensors = {}
        for key, shape in saved["tensors"].items():  # the same numbers whatever comes before a tensor's name
            bare = re.sub("^(vision|text)_model.", "", key)
            tensors[key] = np.random.default_rng(zlib.crc32(bare.encode())).normal(size=shape).astype(np.float32)
        save_file(tensors, directory / "model.safetensors")
        config, params = load_pretrained(directory)
        assert load_config(directory) == config
        return config, params

    (config, params), (same, newer) = load(4), load(5)
    assert same == config
    assert ("vision" in params, "text" in params) == ("Vision" in name, "Text" in name)
    assert (config.projection_dim == 8) == name.endswith("WithProjection")
    jax.tree.map(np.testing.assert_array_equal, newer, params)


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


@pytest.mark.parametrize(
    ("activation", "theirs"),
    [("mish", "mish"), ("leaky_relu", "leaky_relu"), ("relu2", "relu2"), ("gelu_tanh", "gelu_pytorch_tanh")],
)
def test_other_activations_there_and_back(siglip, random_params, tmp_path, activation, theirs):
    towers = {name: replace(getattr(siglip, name), activation=activation) for name in ("vision", "text")}
    config = replace(siglip, **towers)
    save_pretrained(tmp_path, config, random_params(config), format="huggingface")
    contents = json.loads((tmp_path / "config.json").read_text())
    assert contents["vision_config"]["hidden_act"] == contents["text_config"]["hidden_act"] == theirs
    assert load_config(tmp_path).vision == config.vision


def test_a_text_tower_is_no_matter_of_pictures(siglip, random_params, tmp_path):
    naflex = PreprocessConfig(resize_mode="naflex", interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    config = replace(siglip, vision=replace(siglip.vision, flexible=True), preprocess=naflex)
    config, params = surgery.only_text(config, random_params(config))
    save_pretrained(tmp_path, config, params, format="huggingface")
    loaded, tower = load_pretrained(tmp_path)
    assert loaded.text == config.text
    jax.tree.map(np.testing.assert_array_equal, tower, params)


def test_the_card_opens_a_vit_without_a_random_pooler(tmp_path):
    save_pretrained(tmp_path, *load_pretrained(FIXTURES / "vit"), format="huggingface")
    assert 'ViTModel.from_pretrained("DIRECTORY", add_pooling_layer=False)' in (tmp_path / "README.md").read_text()


NAMES = [*HUGGING_FACE, "vit", "dinov2", "dinov2-registers"]


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_bit_identical(tmp_path, name):
    config, params = load_pretrained(FIXTURES / name)
    save_pretrained(tmp_path, config, params, format="huggingface")
    theirs = load_file(FIXTURES / name / "model.safetensors")
    theirs.pop("embeddings.mask_token", None)
    ours = load_file(tmp_path / "model.safetensors")
    unprefixed = {key.removeprefix(f"{name.replace('-', '_with_')}."): tensor for key, tensor in ours.items()}
    assert unprefixed.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(unprefixed[key], tensor)
    loaded, _ = load_pretrained(tmp_path)
    assert (loaded.vision, loaded.text, loaded.preprocess) == (config.vision, config.text, config.preprocess)

    expected = json.loads((FIXTURES / name / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == expected["architectures"]
    for part in ("text_config", "vision_config"):
        for field in written.get(part, {}).keys() & expected.get(part, {}).keys() - {"projection_dim"}:
            assert written[part][field] == expected[part][field], (part, field)


@pytest.mark.parametrize("name", ["clip-argmax", "siglip"])
def test_the_file_is_the_one_that_transformers_writes(tmp_path, name):
    config, params = load_pretrained(FIXTURES / name)
    save_pretrained(tmp_path, config, params, format="huggingface")
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == (FIXTURES / name / "model.safetensors").read_bytes()


def test_writes_both_layouts_of_the_processor_and_the_tokenizer(tmp_path):
    config, params = load_pretrained(FIXTURES / "clip-argmax")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    (tmp_path / "words" / "notes.md").write_text("not of the tokenizer")
    save_pretrained(tmp_path / "model", config, params, format="huggingface", tokenizer=tmp_path / "words")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    old = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    new = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    assert old.pop("processor_class") == new.pop("processor_class") == "CLIPProcessor"
    assert new == {"image_processor": old}
    theirs = json.loads((FIXTURES / "clip-argmax" / "preprocessor_config.json").read_text())
    assert {field: old[field] for field in theirs} == theirs
    assert load_config(tmp_path / "model").preprocess.tokenizer == str(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'CLIPModel.from_pretrained("DIRECTORY")' in card
    with pytest.raises(ValueError, match="a tokenizer's directory has one of"):
        save_pretrained(tmp_path / "model", config, params, format="huggingface", tokenizer=FIXTURES)


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_half_precision_out(tmp_path, given):
    config, params = load_pretrained(FIXTURES / "siglip")
    half = load_pretrained(FIXTURES / "siglip", dtype=given)[1]
    save_pretrained(tmp_path, config, half, format="huggingface", dtype="bfloat16" if given == "float32" else None)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(tmp_path)[1],
        jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), params),
    )


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("vision", {"norm": "rmsnorm", "norm_bias": False}, "vision.norm = 'rmsnorm', vision.norm_bias = False"),
        ("vision", {"num_registers": 2}, "vision.num_registers = 2"),
        ("text", {"activation": ("silu", "linear")}, r"text.activation = \('silu', 'linear'\)"),
        ("text", {"causal": True}, "text.causal = True"),
        ("preprocess", {"resize_mode": "longest"}, "preprocess.resize_mode = 'longest'"),
    ],
)
def test_what_no_class_expresses_is_said(siglip, random_params, tmp_path, part, change, named):
    config = replace(siglip, **{part: replace(getattr(siglip, part), **change)})
    params = random_params(config)
    with pytest.raises(ValueError, match=f"siglip cannot express {named}: change the model, or save it"):
        save_pretrained(tmp_path / "model", config, params, format="huggingface")
    assert not (tmp_path / "model").exists()
    with pytest.warns(UserWarning, match=f"cannot express {named}; open_clip .*: the model is saved in our own"):
        save_pretrained(tmp_path / "model", config, params, format="auto")
    assert load_config(tmp_path / "model") == config
