"""What ends a run early, and what may change before it goes on: all of it in this process, on one small run."""

import dataclasses
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_data import Pipeline, SourceConfig, read_records
from clip_data.tfrecord import write_examples
from clip_train import TrainConfig, load_run
from clip_train.checkpoint import Checkpoints
from clip_train.cli import main
from clip_train.config import ModelConfig, TrainDataConfig
from clip_train.continuation import tell_changes
from clip_train.jsonl import read_jsonl
from clip_train.lease import Lease
from clip_train.optimizers import ScheduleConfig

EVALUATION = {
    "name": "pairs",
    "task": "zeroshot_retrieval",
    "positives": "caption",
    "data": {"format": "tfrecord", "shards": "test-*.tfrecord"},
    "every": 2,
}
# What measures the machine and not the run.
TIMES = ("seconds", "data_", "images_per_second", "memory")


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def config(squares):
    """Six steps, the odd ones of which are neither saved nor evaluated; an eighth of the pictures are damaged."""
    records = read_records(SourceConfig(format="tfrecord", shards=str(squares / "train-*.tfrecord")))
    examples = [
        {"key": record.key, "png": record.image if number % 8 else b"<html>", "caption": record.caption}
        for number, record in enumerate(records)
    ]
    write_examples(str(squares / "damaged.tfrecord"), examples)
    tree = json.loads((squares / "config.json").read_text())
    tree |= {"train_samples": 96, "evaluation": [EVALUATION], "checkpoint": {"every_steps": 2, "keep": 5}}
    tree["data"] = {"train": [{"format": "tfrecord", "shards": "damaged.tfrecord"}], "max_bad_fraction": 0.2}
    path = squares / "six.json"
    path.write_text(json.dumps(tree))
    return path


def go(config, output, *changes):
    changes = (f"output_dir={output}", *changes)
    return main(["run", str(config), *(word for change in changes for word in ("--set", change))])


@pytest.fixture(scope="module")
def whole(config, compiled_once, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    assert go(config, output) == 0
    return output


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copied")


def rows_of(output):
    rows = read_jsonl(output / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]


def results_of(output):
    return json.loads((output / "results.json").read_text())


def check_same(output, whole):
    assert rows_of(output) == rows_of(whole)
    assert results_of(output)["skipped_samples"] == results_of(whole)["skipped_samples"]
    jax.tree.map(np.testing.assert_array_equal, load_run(output)[1], load_run(whole)[1])
    assert sorted(os.listdir(output / "checkpoints"))[-1] == "6"
    assert not (output / "lock").exists()


def test_everything_is_measured_before_the_first_step(whole):
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "pairs/image_retrieval_recall@5" in row] == [0, 2, 4, 6]
    lost = [row["skipped/bad_image"] for row in rows[1:]]
    assert lost == sorted(lost)
    assert lost[-1] == results_of(whole)["skipped_samples"]["bad_image"] == 12


@pytest.mark.parametrize("at", [1, 4])
def test_a_batch_that_is_awaited_when_the_run_is_stopped_comes_again(config, whole, tmp_path, monkeypatch, capsys, at):
    following, number = Pipeline.__next__, 0

    def stalls(self):
        nonlocal number
        batch = following(self)  # and the pipeline has moved on
        if self.config.shuffle and (number := number + 1) == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "__next__", stalls)
        assert go(config, tmp_path / "run") == 128 + signal.SIGTERM
    how = "nothing was left to save" if at == 1 else "saved in"
    assert f"Stopped by SIGTERM after step {at - 1}; {how}" in capsys.readouterr().out
    assert go(config, tmp_path / "run") == 0
    check_same(tmp_path / "run", whole)


@pytest.mark.parametrize("at", ["2", "4", "the end"])
def test_an_evaluation_that_is_broken_off_is_made_by_the_next_start(config, whole, tmp_path, monkeypatch, capsys, at):
    import clip_train.run as module

    evaluate, number = module.evaluate, 0

    def breaks_off(*args, **kwargs):
        nonlocal number
        number += 1
        if number == {"2": 2, "4": 3, "the end": 4}[at]:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", breaks_off)
        assert go(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert f"after step {at if at != 'the end' else 6}; saved in" in capsys.readouterr().out
    assert not (tmp_path / "run" / "results.json").exists()
    assert go(config, tmp_path / "run") == 0
    check_same(tmp_path / "run", whole)


def test_signals_that_come_while_it_saves_do_not_keep_it_from_saving(config, whole, tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def interrupted(self):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    assert go(config, tmp_path / "run") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["2"]
    assert go(config, tmp_path / "run") == 0
    check_same(tmp_path / "run", whole)


def test_fewer_steps_than_were_made_are_refused_and_touch_nothing(config, copied, capsys):
    before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    assert go(config, copied, "train_samples=48") == 2
    assert "train_samples: 48 are 3 steps, and this run has made 6: give at least 96" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


def forget(output, *steps):
    """As a run that was killed before it had made and saved these."""
    (output / "results.json").unlink()
    for step in steps:
        shutil.rmtree(output / "checkpoints" / str(step))


def test_what_only_rounds_otherwise_may_change_and_is_told(config, copied, whole, capsys):
    forget(copied, 6)
    stored = json.loads((copied / "config.json").read_text())
    del stored["data"]["canonicalize"], stored["optimizer"]["max_logit_scale"], stored["remat"]  # of an earlier version
    (copied / "config.json").write_text(json.dumps(stored))
    changes = ('mesh={"data": 8}', "data.max_bad_fraction=0.5")
    assert go(config, copied, *changes, "seed=1") == 2
    error = capsys.readouterr().err
    differing = [line.split(":")[0].strip() for line in error.splitlines() if line.startswith("  ")]
    assert differing == ["data.seed", "seed"]
    assert go(config, copied, *changes) == 0
    assert "computed in another way from here on:\n  mesh.data: null before, 8 now\n" in capsys.readouterr().out
    check_same(copied, whole)


def test_a_longer_run_has_another_schedule_which_is_told():
    config = TrainConfig(
        output_dir="run",
        model=ModelConfig(preset="siglip-b-16-224"),
        data=TrainDataConfig(train=(SourceConfig(format="folder", shards="."),)),
        global_batch_size=16,
        train_samples=128,
        schedule=ScheduleConfig(decay="constant", warmup=2),
    )
    before, after = {"train_samples": 96}, {"train_samples": 128}
    for schedule, told in ((ScheduleConfig(decay="constant", warmup=2), 0), (ScheduleConfig(), 1)):
        said = []
        setup = SimpleNamespace(config=dataclasses.replace(config, schedule=schedule), num_steps=8)
        tell_changes(before, after, setup, said.append)
        assert len(said) == told
    assert "train_samples was 96 and is 128: from here on the learning rate is that of a run of 8 steps" in said[0]


def test_a_run_of_which_nothing_was_saved_may_be_started_with_another_config(config, copied, whole):
    forget(copied, 2, 4, 6)
    (copied / "wandb").mkdir()
    (copied / "wandb" / "run_id").touch()
    assert go(config, copied, "data.seed=1") == 0
    assert not (copied / "wandb" / "run_id").exists()
    rows = rows_of(copied)
    assert [row["step"] for row in rows] == list(range(7))
    assert rows[1]["loss"] != rows_of(whole)[1]["loss"]


def test_a_branch_begins_at_another_runs_checkpoint_with_all_of_it(config, whole, tmp_path, capsys):
    branch = f'branch={{"run": "{whole}", "step": 4}}'
    assert go(config, tmp_path / "same", branch) == 0
    first, *rows = rows_of(tmp_path / "same")
    expected = rows_of(whole)
    assert rows == expected[5:]
    assert first == {name: expected[4][name] for name in expected[4] if name == "step" or name.startswith("pairs/")}
    assert "lacks" not in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "same")[1], load_run(whole)[1])
    capsys.readouterr()
    assert go(config, tmp_path / "none", f'branch={{"run": "{whole}", "step": 3}}') == 2
    assert "branch: no checkpoint of step 3 in" in capsys.readouterr().err


def test_a_directory_in_use_is_refused_before_anything_in_it_is_touched(config, copied, capsys):
    with Lease(str(copied)):
        before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
        assert go(config, copied, "train_samples=128") == 2
        assert f"output_dir: {copied} is in use by process {os.getpid()} on" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before
