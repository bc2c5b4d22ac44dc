"""A run's own step by the TPU compiler, where it is: `uv run --group tpu pytest …/test_tpu.py`."""

import json
import os

import pytest

pytest.importorskip("libtpu")
# Said before the compiler is loaded; it loads once for all tests, and beside other processes that have it.
os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}

from clip_train.cli import main

WIDTH = 128
TOWER = {"width": WIDTH, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {
        "vision": {"image_size": 16, "patch_size": 8, **TOWER},
        "text": {"vocab_size": 16, "max_length": 8, **TOWER},
        "preprocess": {"tokenizer": "words"},
    }
    config = {
        "output_dir": "run",
        "model": {"config": model},
        "data": {"train": [{"format": "tfrecord", "shards": "nowhere-*.tfrecord"}]},
        "global_batch_size": 64,
        "train_samples": 6400,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path / "config.json"


def planned(config, *overrides):
    arguments = [part for override in overrides for part in ("--set", override)]
    status = main(["plan", str(config), "--topology", "v5e:2x2", *arguments, "--json", "plan.json"])
    return status, json.loads((config.parent / "plan.json").read_text())


def test_the_step_of_a_run_is_planned_for_a_slice(config, capsys):
    status, plan = planned(config)
    assert status == 0
    assert plan["hardware_flops"] == pytest.approx(plan["model_flops"], rel=0.05)
    gradients = plan["memory"]["parameters"] / 2  # in bfloat16
    assert plan["sent"]["all-reduce"] >= 2 * 3 / 4 * gradients * 0.9
    assert plan["sent"]["collective-permute"] > 0
    assert plan["uncounted_loops"] == plan["library_calls"] == 0
    assert 0 < plan["mfu"] < 1
    assert "limited by" in capsys.readouterr().out


def test_what_fits_no_slice_is_refused(config, capsys):
    wide = {"width": 8192, "num_layers": 24, "num_heads": 64}
    text = json.dumps({"vocab_size": 16, "max_length": 8, **wide})
    status, plan = planned(config, "global_batch_size=4", f"model.config.text={text}", "sharding=replicated")
    assert (status, plan["fits"], plan["fits_with"]) == (3, False, None)
    state = 3 * 4 * 24 * 12 * 8192**2  # parameters and AdamW's two moments
    assert plan["needed"] > state > plan["available"]
    assert "Nothing fits" in capsys.readouterr().out
