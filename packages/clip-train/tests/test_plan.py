"""The plan of a run: what it counts, what it says, and what it does about a run that does not fit."""

import dataclasses
import json

import pytest

import clip_train.plan
from clip_sharding import CHIPS, DoesNotFitError, find_topology
from clip_train.cli import main

CONFIG = {
    "output_dir": "run",
    "model": {
        "config": {
            "vision": {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 2, "num_heads": 2},
            "text": {"vocab_size": 16, "max_length": 6, "width": 32, "num_layers": 2, "num_heads": 2},
            "preprocess": {"tokenizer": "words"},
        }
    },
    "data": {"train": [{"format": "tfrecord", "shards": "nowhere-*.tfrecord"}]},
    "global_batch_size": 64,
    "microbatch_size": 32,
    "train_samples": 6400,
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    # The chip's peaks on processor devices, so that what is told of TPUs is told without their compiler.
    like_v5e = dataclasses.replace(find_topology("cpu:8"), chip=CHIPS["v5e"])
    monkeypatch.setattr(clip_train.plan, "find_topology", lambda name: like_v5e)
    return tmp_path / "config.json"


def test_a_plan_counts_the_step_that_a_run_makes(config, capsys):
    assert main(["plan", str(config), "--topology", "cpu:8", "--json", "plan.json"]) == 0
    plan = json.loads((config.parent / "plan.json").read_text())
    # Two layers of each tower, forward and twice that backward; 2·(4·d² + 2·4d²) a token and 4·d for each it looks at.
    tokens, d = 64 * (4 + 6), 32
    layers = 3 * 2 * (tokens * 24 * d**2 + 64 * (4**2 + 6**2) * 4 * d)
    assert layers < plan["model_flops"] < 1.3 * layers  # and patches, pooling, projections, the loss
    # Microbatches are encoded once more, without which an update is three passes: four thirds.
    assert plan["flops"] * 8 == pytest.approx(4 / 3 * plan["model_flops"], rel=0.03)
    assert plan["uncounted_loops"] == 0
    params = plan["memory"]["parameters"]
    assert plan["memory"]["optimizer"] == pytest.approx(2 * params, rel=0.01)
    assert plan["memory"]["batch"] == 8 * (16 * 16 * 3 + 2 * 6 * 4)
    assert plan["sent"]["all-reduce"] >= 2 * 7 / 8 * params * 0.99
    assert plan["mfu"] == pytest.approx(plan["model_flops"] / (plan["roofline"]["bound"] * 8 * 197e12))
    assert plan["num_steps"] == 100
    assert plan["chip_hours"] == pytest.approx(8 * 100 * plan["roofline"]["bound"] / 3600)
    screen = capsys.readouterr().out
    for told in ("memory of a device", "hardware FLOPs", "all-reduce bytes", "limited by", "chip-hours"):
        assert told in screen
    (config.parent / "other.json").write_text(json.dumps({**plan, "bytes": 2 * plan["bytes"]}))
    assert main(["plan", "--compare", str(config.parent / "plan.json"), str(config.parent / "other.json")]) == 0
    assert "2.000" in next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("bytes "))


def test_what_does_not_fit_says_by_how_much_and_what_would(config, capsys, monkeypatch):
    tried = []

    def compiled(step, state, batch, **_):
        tried.append(step)
        raise DoesNotFitError(20 * 2**30, 16 * 2**30)

    monkeypatch.setattr(clip_train.plan, "plan", compiled)
    assert main(["plan", str(config), "--topology", "cpu:8", "--json", "plan.json"]) == 3
    screen = capsys.readouterr().out
    assert "4.00 GiB too many" in screen
    assert "Nothing fits" in screen
    # As asked; then the whole batch, halved down to a row on each device, with four policies each.
    assert len(tried) == 1 + 4 * 4
    plan = json.loads((config.parent / "plan.json").read_text())
    assert (plan["fits"], plan["fits_with"], plan["needed"]) == (False, None, 20 * 2**30)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config.json"], "a plan is of a config and a topology"),
        (["config.json", "--topology", "cpu:8", "--set", "train_samples=2 epochs"], "Give a number of samples"),
        (["config.json", "--topology", "cpu:8", "--set", "microbatch_size=4"], "must divide over 8 devices"),
        (["--compare", "config.json", "config.json"], "this is no plan"),
    ],
)
def test_what_cannot_be_planned_is_refused(config, capsys, arguments, says):
    assert main(["plan", *arguments]) == 2
    assert says in capsys.readouterr().err
