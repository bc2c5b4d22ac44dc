import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from clip_data import Tokenizer
from clip_models import (
    ClipConfig,
    PreprocessConfig,
    TextConfig,
    VisionConfig,
    encode_image,
    encode_text,
    init,
    load_pretrained,
)
from clip_train import Checkpoints, TrainConfig, TrainState
from clip_train.cli import main
from clip_train.config_file import config_to_json, parse_config
from clip_train.jax_export import example_program
from clip_train.output import Output, write_json

MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=2, num_heads=2),
    text=TextConfig(vocab_size=16, max_length=6, width=32, num_layers=2, num_heads=2),
)


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    """A run of nothing but what an export reads; its averages are its parameters with every sign turned."""
    directory = tmp_path_factory.mktemp("run")
    model = dataclasses.replace(MODEL, preprocess=PreprocessConfig(text_length=6, tokenizer=str(squares / "words")))
    config = json.loads((squares / "config.json").read_text())
    config |= {"model": {"config": dataclasses.asdict(model)}, "output_dir": str(directory), "ema": {}}
    config["data"]["train"][0]["shards"] = str(squares / "train-*.tfrecord")
    config["data"]["train"].append({"format": "webdataset", "shards": "gs://ours/pairs/*.tar"})
    Output(directory).write_config(config_to_json(parse_config(TrainConfig, config)))
    params = init(model, jax.random.key(0))
    ema = jax.tree.map(jnp.negative, params)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(7, TrainState(step=jnp.int32(7), params=params, opt_state={"n": jnp.zeros(1)}, ema=ema), {})
    row = {"step": 7, "samples": 112, "loss": 1.25, "colours/acc1": 0.75}
    (directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return directory, model, params, ema


def programs_of(card):
    return "\n".join(re.findall(r"```python\n(.*?)```", card, re.S))


def test_programs_run_without_this_project(run, tmp_path):
    directory, model, _, ema = run
    to = tmp_path / "for-jax"
    assert main(["export", str(directory), str(to), "--to", "jax"]) == 0
    loader = programs_of((to / "README.md").read_text()).split("from PIL")[0]
    rng = np.random.default_rng(0)
    pixels, ids = rng.normal(size=(3, 16, 16, 3)).astype(np.float32), rng.integers(0, 16, (3, 6), dtype=np.int32)
    np.savez(tmp_path / "inputs.npz", pixels=pixels, ids=ids)
    ours = ["flax", "safetensors", *(f"clip_{name}" for name in ("data", "losses", "models", "sharding", "train"))]
    program = f"""
import sys
sys.path.append({sysconfig.get_paths()["purelib"]!r})
sys.modules |= dict.fromkeys({ours!r})  # to import one is an error
{loader}
given = np.load("inputs.npz")
image, text = encoder("encode_image"), encoder("encode_text")
np.savez("outputs.npz", **{{f"{{n}}": np.stack([image(given["pixels"][:n]), text(given["ids"][:n])]) for n in (1, 3)}})
"""
    # -S: packages that are installed as links to their sources are not found either.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    images, texts = jax.jit(lambda *inputs: (encode_image(model, ema, inputs[0]), encode_text(model, ema, inputs[1])))(
        pixels, ids
    )
    for n in (1, 3):
        np.testing.assert_allclose(outputs[str(n)][0], images[:n], atol=1e-5)
        np.testing.assert_allclose(outputs[str(n)][1], texts[:n], atol=1e-5)
    about = json.loads((to / "programs.json").read_text())
    for name in ("encode_image", "encode_text"):
        exported = jax.export.deserialize(bytearray((to / f"{name}.jax").read_bytes()))
        assert exported.platforms == tuple(about["platforms"]) == ("cpu", "cuda", "tpu")
    assert about["image"]["mean"] == [0.5, 0.5, 0.5]
    assert about["text"] | {"pad_id": 0, "tokenizer": "tokenizer.json"} == about["text"]


def test_the_example_resizes_only_by_a_rule_that_holds(tmp_path):
    def example(mode, height):
        image = {
            "resize_mode": mode,
            "height": height,
            "width": 16,
            "interpolation": "bicubic",
            "mean": 0.5,
            "std": 0.5,
        }
        program = {"file": "encode_image.jax", "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["b"]}]}
        write_json(tmp_path / "programs.json", {"programs": {"encode_image": program}, "image": image})
        text = example_program(tmp_path)
        compile(text, "card", "exec")
        return text

    assert "min(image.size)" in example("shortest", 16)
    assert ".resize((16, 24)" in example("squash", 24)
    for mode, height in (("shortest", 24), ("longest", 16)):
        text = example(mode, height)
        assert "PIL" not in text
        assert f'resized ("{mode}") and normalised: about["image"], of programs.json' in text


@pytest.mark.parametrize("rules", [(False, False), (True, False), (False, True), (True, True)])
def test_the_example_prepares_texts_as_they_were_in_training(squares, tmp_path, rules):
    lower_case, canonicalize = rules
    text = {"text_length": 6, "pad_id": 0, "lower_case": lower_case, "canonicalize": canonicalize}
    inputs = [{"name": name, "dtype": "int32", "shape": ["b", 6]} for name in ("input_ids", "attention_mask")]
    program = {"file": "encode_text.jax", "inputs": inputs}
    write_json(tmp_path / "programs.json", {"programs": {"encode_text": program}, "text": text})
    shutil.copy(squares / "words" / "tokenizer.json", tmp_path)
    texts = ["A  red, Square", "the_blue one."]
    code = example_program(tmp_path).replace('["a photo of a cat", "a photo of a dog"]', repr(texts))
    given, numbers = (
        {},
        {"np": np, "directory": str(tmp_path), "encoder": lambda name: lambda *arrays: given.update(x=arrays)},
    )
    exec(code, numbers)
    rule = {"lower_case": lower_case, "canonicalize": canonicalize}
    expected = Tokenizer(str(squares / "words"), text_length=6, **rule)(texts)
    for ours, theirs in zip(given["x"], expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_card_says_what_the_model_is(run, tmp_path):
    to = tmp_path / "model"
    assert main(["export", str(run[0]), str(to), "--to", "huggingface", "--weights", "raw"]) == 0
    card = (to / "README.md").read_text()
    for said in (
        "parameters, after step 7",
        "| pairs seen | 112 |",
        "| tfrecord | train-*.tfrecord | 1.0 |",
        "| webdataset | *.tar | 1.0 |",
        "| colours | zeroshot_classification |  | acc1 | 0.75 |",
        "measured with the moving averages, which are not the weights that are here",
        'SiglipModel.from_pretrained("model")',
        "outputs = model(**inputs)",
    ):
        assert said in card, said
    assert str(tmp_path.parent) not in card
    assert "gs://" not in card
    compile(programs_of(card), "card", "exec")


def test_a_runs_directory_is_a_model_itself(run):
    directory, model, _, ema = run
    config, params = load_pretrained(directory)
    assert config == model
    jax.tree.map(np.testing.assert_array_equal, params, ema)


def test_weights_are_chosen_and_said(run, tmp_path, capsys):
    directory, _, params, ema = run
    for weights, expected, said in ((None, ema, "moving averages of step 7, as"), ("raw", params, "do not use")):
        to = tmp_path / str(weights)
        assert main(["export", str(directory), str(to), *([] if weights is None else ["--weights", weights])]) == 0
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(to)[1], expected)
        assert said in capsys.readouterr().out
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    write_json(bare / "config.json", json.loads((directory / "config.json").read_text()) | {"ema": None})
    assert main(["export", str(bare), str(tmp_path / "x"), "--weights", "ema"]) == 2
    assert "the run kept no moving averages" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine: what was asked of it, and the files that it was sent; all that it does may be refused."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append((self.command, self.path, self.headers.get("Authorization")))
            reply, status = {}, 200
            if server.refusal:
                reply, status = {"error": server.refusal}, 403
            elif self.path.startswith("/put/"):
                server.files[self.path.removeprefix("/put/")] = body
            elif self.path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(("safetensors", "jax")) else "regular" for name in names}
                reply = {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]}
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                put = [{"href": f"{server.address}/put/{item['oid']}"} for item in objects]
                reply = {"transfer": "basic"}
                reply["objects"] = [{**i, "actions": {"upload": p}} for i, p in zip(objects, put, strict=True)]
            elif self.path.endswith("/commit/main"):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        server.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        server.files[value["path"]] = server.files.pop(value["oid"])
                reply = {"commitUrl": f"{server.address}/me/digits/commit/1", "commitOid": "1", "success": True}
            elif self.path == "/api/repos/create":
                reply = {"url": f"{server.address}/me/digits"}
            self.send_response(status)
            text = json.dumps(reply).encode()
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.files, server.refusal = [], {}, None
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# huggingface_hub's own way of putting a large file, until it follows its HTTP client.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_is_made_when_asked_and_only_then(run, tmp_path, hub, capsys):
    assert main(["export", str(run[0]), str(tmp_path / "a")]) == 0
    assert not hub.asked
    to = tmp_path / "b"
    assert main(["export", str(run[0]), str(to), "--push", "me/digits", "--private"]) == 0
    assert "Pushed to " in capsys.readouterr().out
    assert {token for _, _, token in hub.asked} <= {"Bearer hf_secret", None}
    assert hub.files == {path.name: path.read_bytes() for path in to.iterdir()}
    assert 'load_pretrained("me/digits")' in hub.files["README.md"].decode()


def test_a_push_that_cannot_be_is_one_message(run, tmp_path, hub, monkeypatch, capsys):
    def refused(*arguments):
        assert main(["export", str(run[0]), str(tmp_path / "model"), *arguments]) == 2
        return capsys.readouterr().err

    assert "a repository is called owner/name; got 'digits'" in refused("--push", "digits")
    assert not (tmp_path / "model").exists()
    hub.refusal = "You have no right to write here"
    message = refused("--push", "me/digits")
    assert "the Hub refuses me/digits" in message
    assert hub.refusal in message
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token" in refused("--push", "me/digits")
