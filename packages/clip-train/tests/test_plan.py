"""The plan of a run: what it counts, what it says, and what it does about a run that does not fit."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

import clip_train.plan
from clip_models import ClipConfig, TextConfig, VisionConfig, init, preset, save_pretrained
from clip_sharding import CHIPS, DoesNotFitError, MeshConfig, Plan, Roofline, bytes_per_device, find_topology
from clip_train.cli import main
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, read_config
from clip_train.plan import plan_run, search
from clip_train.program import _mesh_for

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


FOR_ONE = Plan(
    topology="v5e-8",
    num_devices=8,
    num_chips=8,
    chip="v5e",
    memory={"activations": 5, "temporaries": 3, "peak": 2**20},
    available=2**30,
    flops=1e9,
    flops_check=1.0,
    bytes=1e6,
    sent={"all-reduce": 100.0},
    sent_between_slices={},
    uncounted_loops=0,
    library_calls=0,
    roofline=Roofline(compute=1.0, memory=2.0, network=0.5, slices=0.0, in_order=3.0),
)


@pytest.fixture
def compiled(monkeypatch):
    """What is compiled, name by name of its groups, and what the compiler says of each program: to be set."""
    asked, says = [], {}

    def compiled(step, *args, topology, groups):
        asked.append({name: bytes_per_device(tree) for name, tree in groups.items()})
        found = says.get(len(asked) - 1, FOR_ONE)
        if isinstance(found, Exception):
            raise found
        return dataclasses.replace(found, memory=asked[-1] | found.memory)

    monkeypatch.setattr(clip_train.plan, "plan", compiled)
    return asked, says


def planned(config, *overrides):
    return plan_run(read_config(TrainConfig, config, overrides), clip_train.plan.find_topology("cpu:8"))


def test_a_teacher_and_averages_are_in_the_plan(config, compiled):
    asked, says = compiled
    says[1] = dataclasses.replace(FOR_ONE, memory={"activations": 1, "temporaries": 7, "peak": 2**20}, flops=5e8)
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2}
    model = ClipConfig(
        vision=VisionConfig(image_size=8, patch_size=8, **sizes), text=TextConfig(vocab_size=16, max_length=6, **sizes)
    )
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    save_pretrained("teacher", model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    found = planned(config, "ema={}", 'loss.distillation={"teacher": "teacher"}').step
    step, teacher = asked
    assert step["averages"] == step["parameters"]
    assert set(teacher) == {"teacher"}
    state = step["parameters"] + step["optimizer"] + step["averages"] + 4
    assert found.memory["peak"] == 2**20 + max(teacher["teacher"], state)
    assert list(found.memory)[-4:] == ["teacher", "activations", "temporaries", "peak"]
    assert (found.memory["activations"], found.memory["temporaries"], found.flops) == (5, 7, 1.5e9)
    assert found.sent == {"all-reduce": 200.0}
    assert (found.roofline.bound, found.roofline.in_order) == (4.0, 6.0)
    says[3] = dataclasses.replace(FOR_ONE, memory=FOR_ONE.memory | {"peak": 2**30 - 1})
    with pytest.raises(DoesNotFitError):
        planned(config, 'loss.distillation={"teacher": "teacher"}')


@pytest.mark.parametrize(
    ("mesh", "strategy"),
    [
        ('{"data": 4, "fsdp": 2}', "fsdp"),
        ('{"data": 4, "model": 2}', "tensor"),
        ('{"data": 2, "fsdp": 2, "model": 2}', "fsdp+tensor"),
    ],
)
def test_the_axes_of_a_mesh_say_what_is_divided(config, compiled, mesh, strategy):
    assert planned(config, f"mesh={mesh}").strategy == strategy


def test_fsdp_by_itself_takes_the_devices_that_divide_every_parameter(config, compiled):
    assert planned(config, "sharding=fsdp").mesh == {"data": 1, "fsdp": 8, "model": 1}
    narrow = 'model.config.text={"vocab_size": 16, "max_length": 6, "width": 36, "num_layers": 1, "num_heads": 2}'
    found = planned(config, "sharding=fsdp", narrow, "model.config.projection_dim=32")
    assert found.mesh == {"data": 2, "fsdp": 4, "model": 1}
    # So400m on two slices of 256: its parameters go over devices of one.
    devices = [types.SimpleNamespace(slice_index=i // 256) for i in range(512)]
    assert _mesh_for("fsdp", preset("siglip-so400m-14-224"), devices) == MeshConfig(data=-1, fsdp=16)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ['mesh={"data": 4, "model": 2}', "sharding=replicated"],
            "sharding: nothing is divided over the mesh axis model",
        ),
        (['mesh={"data": 4, "model": 2}', 'sharding=[["mpl", "model"]]'], "sharding: no array has an axis 'mpl'"),
        (['mesh={"data": 4, "model": 2}', 'sharding=[["mlp", []]]'], "sharding: a rule is a logical axis and one"),
    ],
)
def test_a_division_that_would_do_nothing_is_refused(config, compiled, overrides, says):
    with pytest.raises(ConfigError, match=says):
        planned(config, *overrides)


def test_kernels_that_do_not_tell_do_no_less_than_the_model_asks_for(config, compiled):
    _, says = compiled
    whole = planned(config)
    assert whole.step.roofline == FOR_ONE.roofline
    # The same model, though the kernel that it names cannot be traced here.
    says[1] = dataclasses.replace(FOR_ONE, flops=0.0, library_calls=1)
    fused = planned(config, "attention=splash", "unroll=2")
    assert (fused.config.model.config.compute.attention, fused.config.model.config.compute.unroll) == ("splash", 2)
    assert fused.model_flops == whole.model_flops
    assert fused.step.roofline.compute == pytest.approx(1.0 + whole.model_flops / 8 / 197e12)


TOO_LARGE = DoesNotFitError(20 * 2**30, 16 * 2**30)


def test_what_does_not_fit_says_by_how_much_and_what_would(config, capsys, compiled):
    tried, says = compiled
    # As asked; then the whole batch, halved down to a row on each device, with four policies each; then divided.
    as_it_is = 1 + 4 * 4
    says |= dict.fromkeys(range(as_it_is + 5), TOO_LARGE)
    mesh = ("--set", 'mesh={"data": 8}')
    assert main(["plan", str(config), "--topology", "cpu:8", *mesh, "--json", "new/plan.json"]) == 3
    screen = capsys.readouterr().out
    assert "4.00 GiB too many" in screen
    settings = "--set remat=minimal --set microbatch_size=32 --set sharding=fsdp --set mesh=null"
    assert f"It fits with {settings}" in " ".join(screen.split())
    assert tried[0]["parameters"] > 7 * tried[-1]["parameters"]
    plan = json.loads((config.parent / "new" / "plan.json").read_text())
    assert (plan["fits"], plan["needed"]) == (False, 20 * 2**30)
    assert plan["fits_with"] == {"remat": "minimal", "microbatch_size": 32, "sharding": "fsdp", "mesh": None}
    overrides = [part for part in settings.split() if part != "--set"]
    assert planned(config, 'mesh={"data": 8}', *overrides).strategy == "fsdp"


@pytest.mark.parametrize("fit", [("--fit",), ()])
def test_where_nothing_fits_that_is_told(config, capsys, compiled, fit):
    tried, says = compiled
    says |= dict.fromkeys(range(99), TOO_LARGE)
    row_each = ("--set", "global_batch_size=8", "--set", "microbatch_size=null")
    assert main(["plan", str(config), "--topology", "cpu:8", *row_each, *fit, "--json", "plan.json"]) == 3
    assert "Nothing fits" in capsys.readouterr().out
    assert len(tried) == (not fit) + 2 * 4
    plan = json.loads((config.parent / "plan.json").read_text())
    assert (plan["fits"], plan["fits_with"], plan["needed"]) == (False, None, 20 * 2**30)


def test_a_state_that_is_too_large_is_not_compiled(config, compiled):
    tried, _ = compiled
    small = dataclasses.replace(CHIPS["v5e"], memory=2**19)
    topology = dataclasses.replace(find_topology("cpu:8"), chip=small)
    trials = []
    found = search(read_config(TrainConfig, config, ["sharding=replicated"]), topology, trials.append)
    assert [trial.plan is None for trial in trials] == [True, False]
    assert (found.strategy, found.config.microbatch_size, found.config.remat, len(tried)) == ("fsdp", 64, "none", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config.json"], "a plan is of a config and a topology"),
        (["config.json", "--topology", "cpu:8", "--set", "train_samples=2 epochs"], "Give a number of samples"),
        (["config.json", "--topology", "cpu:8", "--set", "microbatch_size=4"], "must divide over 8 devices"),
        (
            ["config.json", "--topology", "cpu:8", "--set", "attention=cudnn"],
            "attention: attention='cudnn' computes in",
        ),
        (["--compare", "config.json", "config.json"], "this is no plan"),
    ],
)
def test_what_cannot_be_planned_is_refused(config, capsys, arguments, says):
    assert main(["plan", *arguments]) == 2
    assert says in capsys.readouterr().err
