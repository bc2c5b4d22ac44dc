import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_models import load_config, load_pretrained, num_params, save_pretrained
from clip_models.params import flatten

FIXTURES = Path(__file__).parent / "fixtures"


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


@pytest.mark.parametrize(("stored", "dtype"), [("float16", "float32"), ("float32", "bfloat16")])
def test_parameters_are_of_the_dtype_asked_for(tmp_path, stored, dtype):
    directory = shutil.copytree(FIXTURES / "siglip", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    save_file({name: tensor.astype(stored) for name, tensor in tensors.items()}, directory / "model.safetensors")
    params = load_pretrained(directory, dtype=dtype)[1]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    kernel = tensors["text_model.head.weight"].T.astype(stored).astype(dtype)
    np.testing.assert_array_equal(params["text"]["projection"]["kernel"], kernel)


def test_parameters_are_no_whole_numbers():
    with pytest.raises(ValueError, match=r"dtype must be of floating-point numbers, .*; got 'int32'"):
        load_pretrained(FIXTURES / "siglip", dtype="int32")


def test_our_format_is_bit_identical(config, params, tmp_path):
    config = dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, tokenizer="some/where"))
    save_pretrained(tmp_path / "new" / "model", config, params)
    assert load_config(tmp_path / "new" / "model") == config
    loaded_config, loaded = load_pretrained(tmp_path / "new" / "model")
    assert loaded_config == config
    assert flatten(loaded).keys() == flatten(params).keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == ["config.json", "model.safetensors"]


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


def test_a_config_given_takes_the_place_of_the_directory_s(tmp_path):
    config, _ = load_pretrained(FIXTURES / "siglip")
    given = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat="full"))
    assert load_pretrained(FIXTURES / "siglip", config=given)[0] == given
    wider = dataclasses.replace(config, text=dataclasses.replace(config.text, mlp_dim=21))
    with pytest.raises(ValueError, match=r"layers.0.mlp.fc2.weight: expected \[12, 21\], got \[12, 20\]"):
        load_pretrained(FIXTURES / "siglip", config=wider)


@pytest.mark.parametrize(
    ("name", "part", "changes", "foreign"),
    [
        ("siglip", "vision", {"num_registers": 2}, "The format has no vision/registers. Give the config"),
        ("siglip", "text", {"qk_norm": True}, "The format has no text/blocks/attention/key_norm/scale, text/blocks/"),
        (
            "siglip",
            "vision",
            {"positions": "rotary", "num_heads": 3},
            "The config has no vision/position_embedding, wh",
        ),
        ("open-clip", "vision", {"norm_bias": False}, "The config has no vision/blocks/norm1/bias"),
    ],
)
def test_a_config_that_the_format_cannot_hold_is_refused(name, part, changes, foreign):
    config = load_config(FIXTURES / name)
    given = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})
    with pytest.raises(ValueError, match=f"one that the format of .*{name} can hold. {foreign}"):
        load_pretrained(FIXTURES / name, config=given)


def _without(*path):
    def change(contents):
        for key in path[:-1]:
            contents = contents[key]
        del contents[path[-1]]

    return change


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("siglip", "config.json", "{", r"config.json must be JSON; it is not \(Expecting"),
        ("siglip", "config.json", "[]", "config.json must hold a JSON object, {…}; it holds a list"),
        (
            "siglip",
            "config.json",
            lambda c: c["vision_config"].update(hidden_size="12"),
            "config.json: width must be a whole number; got '12'",
        ),
        (
            "siglip",
            "config.json",
            lambda c: c.update(text_config=[1]),
            "config.json has a field of another type than its format has",
        ),
        ("open-clip", "open_clip_config.json", _without("model_cfg"), "open_clip_config.json lacks 'model_cfg'"),
        ("open-clip", "open_clip_config.json", _without("model_cfg", "embed_dim"), "lacks 'embed_dim'"),
        ("native", "config.json", _without("config"), "config.json lacks 'config'"),
        ("native", "config.json", _without("config", "vision", "width"), "config.json: vision lacks width"),
        ("siglip", "model.safetensors.index.json", "{}", "model.safetensors.index.json lacks 'weight_map'"),
    ],
)
def test_a_malformed_file_is_named(siglip, random_params, tmp_path, name, file, change, message):
    directory = tmp_path / "model"
    if name == "native":
        save_pretrained(directory, siglip, random_params(siglip))
    else:
        shutil.copytree(FIXTURES / name, directory)
    if callable(change):
        contents = json.loads((directory / file).read_text())
        change(contents)
        change = json.dumps(contents)
    if "index" in file:
        (directory / "model.safetensors").unlink()
    (directory / file).write_text(change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda entry: entry["data_offsets"].__setitem__(1, entry["data_offsets"][0] + 4),
            r"must have 48 bytes; its d",
        ),
        (
            lambda entry: entry.update(dtype="I32"),
            r"must be floating-point numbers; .* has vision_model.head.probe int32",
        ),
        (
            lambda entry: entry.pop("dtype"),
            "whose header gives dtype, shape and data_offsets of each tensor; of vision_",
        ),
        (lambda entry: entry.update(data_offsets=[10**6, 10**6 + 48]), "is cut short: vision_model.head.probe ends at"),
    ],
)
def test_a_malformed_header_of_weights_is_refused(tmp_path, change, message):
    directory = shutil.copytree(FIXTURES / "siglip", tmp_path / "model")
    path = directory / "model.safetensors"
    contents = path.read_bytes()
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    change(header["vision_model.head.probe"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + contents[8 + length :])
    with pytest.raises(ValueError, match=message):
        load_pretrained(directory)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs config.json; .* has none"):
        load_pretrained(tmp_path)
    shutil.copy(FIXTURES / "siglip" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"one of clip-jax, clip, .*dinov2_with_registers; .* says 'bert'"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a directory nor a repository's name"):
        load_pretrained(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tmp_path):
    shutil.copy(FIXTURES / "siglip" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"needs model.safetensors; .* has none"):
        load_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(FileNotFoundError, match=r"has pytorch_model.bin: pickled files, which run whatever code"):
        load_pretrained(tmp_path)


def test_a_repository_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nobody/nothing is not a local directory, and it could not be fetched"):
        load_pretrained("nobody/nothing")


def test_of_a_repository_only_the_files_needed_are_fetched(monkeypatch):
    fetched = []

    def snapshot_download(repo, allow_patterns):
        fetched.extend(allow_patterns)
        return str(FIXTURES / "from_files" / "siglip2_fixed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    config = load_config("google/some-siglip")
    assert config.preprocess.tokenizer == "google/some-siglip"
    assert not any("safetensors" in pattern for pattern in fetched)
    assert load_pretrained("google/some-siglip")[0] == config
    assert fetched[-1] == "model*.safetensors"


_SHARDED = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from clip_models import load_config, load_pretrained, logical_axes
from clip_models.params import flatten

directory = Path(sys.argv[1])
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
divided = {"mlp": "fsdp", "vocab": "fsdp", "embed": "data"}
axes = logical_axes(load_config(directory))
shardings = jax.tree.map(
    lambda names: NamedSharding(mesh, PartitionSpec(*(divided.get(name) for name in names))),
    axes,
    is_leaf=lambda x: isinstance(x, tuple),
)
whole = load_pretrained(directory)[1]
parts = load_pretrained(directory, shardings=shardings)[1]
jax.tree.map(np.testing.assert_array_equal, parts, whole)
assert jax.tree.map(lambda leaf: leaf.sharding, parts) == shardings
assert parts["vision"]["blocks"]["mlp"]["fc1"]["kernel"].addressable_shards[0].data.shape == (2, 6, 11)
everywhere = NamedSharding(mesh, PartitionSpec())
copies = flatten(load_pretrained(directory, shardings=everywhere)[1])
assert all(leaf.sharding == everywhere for leaf in copies.values())
try:
    load_pretrained(directory, shardings={"logit_scale": everywhere})
except ValueError as error:
    assert "one for each parameter; missing ['logit_bias'" in str(error)
else:
    raise SystemExit("half a tree of shardings was accepted")
"""


def test_straight_into_shardings():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _SHARDED, str(FIXTURES / "siglip")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
