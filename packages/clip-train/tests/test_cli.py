import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from clip_train import load_run
from clip_train.cli import main
from clip_train.jsonl import read_jsonl


@pytest.fixture(scope="module")
def finished(squares, compiled_once, tmp_path_factory):
    """A run from start to end, in this process, on eight devices."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", str(squares / "config.json"), "--set", f"output_dir={output}"]) == 0
    return output


def command(squares, output):
    config = str(squares / "config.json")
    return [sys.executable, "-m", "clip_train.cli", "run", config, "--set", f"output_dir={output}"]


def refused(capsys, *arguments):
    """The one message of a command that is refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_run_learns_and_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "checkpoints",
        "report.html",
        "report.json",
    }
    rows = read_jsonl(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(121))
    before, *rows = rows
    assert "colours/acc1" in before
    assert "loss" not in before
    assert {"loss", "grad_norm", "learning_rate", "logit_scale", "logit_bias", "images_per_second"} <= rows[0].keys()
    # From above chance, 3.74, to near what equal captions in a batch leave.
    assert rows[0]["loss"] > 3.74 > 2.5 > rows[-1]["loss"]
    assert [row["step"] for row in rows if "colours/acc1" in row] == [60, 120]
    assert {"grad_norm/vision", "update_norm/text", "param_norm", "verdict"} <= rows[0].keys()
    results = {
        result["dataset"]: result for result in json.loads((finished / "results.json").read_text())["evaluation"]
    }
    assert results["colours"]["metrics"]["acc1"] > 0.9
    assert results["colours"]["num_samples"] == results["pairs"]["num_samples"] == 21
    assert results["pairs"]["metrics"]["text_retrieval_recall@5"] > 0.5


def test_the_resolved_config_leaves_nothing_open(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["loss"]["kind"] == "sigmoid"
    assert config["precision"] == "float32"
    assert config["microbatch_size"] == 16
    assert config["model"]["config"]["vision"]["mlp_dim"] == 128


def test_the_report_stands_alone(finished):
    page = (finished / "report.html").read_text()
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', page)[1])
    loss = curves[0]["curves"]["loss"]
    assert loss["step"] == list(range(1, 121))
    assert loss["mean"][-1] == pytest.approx(read_jsonl(finished / "metrics.jsonl")[-1]["loss"], rel=1e-4)
    for shown in ("Evaluation over time", "Rows: the true class", "prefers-color-scheme: dark"):
        assert shown in page
    assert page.count('src="data:image/png;base64,') == 12
    assert "http" not in page.replace("https://json-schema.org", "").replace("http://www.w3.org/2000/svg", "")
    assert "a red square" in page


def test_a_finished_run_says_so_and_touches_nothing(finished, squares, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main(["run", str(finished)]) == 0
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_eval_gives_the_same_results_and_export_the_same_weights(finished, tmp_path, capsys):
    assert "holds one result, and 2 are asked for" in refused(capsys, "eval", finished, "--to", tmp_path / "a.json")
    assert main(["eval", str(finished), "--to", str(tmp_path / "again")]) == 0
    again = {path.name: json.loads(path.read_text()) for path in (tmp_path / "again").iterdir()}
    expected = json.loads((finished / "results.json").read_text())["evaluation"]
    assert again == {f"{result['dataset']}_run_custom_en_{result['task']}.json": result for result in expected}
    for result in again.values():  # what `clip_benchmark build` asks of a file
        row = {**result["metrics"], **result, "model_fullname": f"{result['model']} {result['pretrained']}"}
        assert {"dataset", "task", "language"} < row.keys()

    from clip_models import load_pretrained

    assert main(["export", str(finished), str(tmp_path / "model")]) == 0
    config, params = load_pretrained(tmp_path / "model")
    ours, theirs = load_run(finished)
    beside = dataclasses.replace(ours.preprocess, tokenizer=str(tmp_path / "model"))  # which can be moved
    assert config == dataclasses.replace(ours, preprocess=beside)
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(finished)[1], theirs)
    assert "not empty" in refused(capsys, "export", finished, tmp_path / "model")

    assert main(["export", str(finished), str(tmp_path / "theirs"), "--to", "huggingface"]) == 0
    config, params = load_pretrained(tmp_path / "theirs")
    assert (config.vision, config.text) == (ours.vision, ours.text)
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    assert config.preprocess.tokenizer == str(tmp_path / "theirs")
    message = refused(capsys, "export", finished, tmp_path / "open_clip", "--to", "open_clip")
    assert "open_clip cannot express" in message


def test_weights_of_a_run_start_and_teach_another(finished, squares, tmp_path):
    args = ["run", str(squares / "config.json"), "--set", f"output_dir={tmp_path / 'b'}"]
    tuned = [
        *args,
        "--set",
        f'model={{"pretrained": "{finished}"}}',
        "--set",
        "train_samples=32",
        "--set",
        "optimizer={}",
        "--set",
        "data.image_size=24",
        "--set",
        f'loss={{"distillation": {{"teacher": "{finished}"}}}}',
    ]
    assert main([*tuned, "--set", "evaluation=[]", "--profile", "2:2"]) == 0
    rows = read_jsonl(tmp_path / "b" / "metrics.jsonl")
    assert len(rows) == 2
    assert len(list((tmp_path / "b" / "profile").rglob("*.xplane.pb"))) == 1
    assert rows[0]["contrastive_loss"] < read_jsonl(finished / "metrics.jsonl")[6]["loss"]
    assert 0 < rows[0]["distillation_loss"] < 0.5
    assert json.loads((tmp_path / "b" / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-5


def test_a_killed_run_continues_bit_for_bit(finished, squares, tmp_path):
    output = tmp_path / "run"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(squares, output), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_step(output, 45, process)
    process.kill()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, printed
    assert not (output / "results.json").exists()

    assert main(["run", str(squares / "config.json"), "--set", f"output_dir={output}"]) == 0
    rows, expected = read_jsonl(output / "metrics.jsonl"), read_jsonl(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert [row.get("loss") for row in rows] == [row.get("loss") for row in expected]
    jax.tree.map(np.testing.assert_array_equal, load_run(output)[1], load_run(finished)[1])


def wait_for_step(output, step, process):
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        # A step is only in the checkpoints once it is whole: before, killing would test a start from scratch.
        if len(read_jsonl(output / "metrics.jsonl")) >= step and (output / "checkpoints" / "40").exists():
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached")


def test_another_runs_directory_is_refused_with_the_difference(finished, squares, capsys):
    arguments = ("run", squares / "config.json", "--set", f"output_dir={finished}", "--set", "seed=1")
    message = refused(capsys, *arguments)
    assert "holds another run" in message
    assert "seed: 0 there, 1 here" in message
    assert "--set output_dir=DIR" in message


def test_a_foreign_directory_is_refused(squares, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    message = refused(capsys, "run", squares / "config.json", "--set", f"output_dir={tmp_path}")
    assert "is not empty and holds no run" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokeniser=x", "data.tokeniser: unknown key. Did you mean 'tokenizer'?"),
        ("loss.kind=softmax", "loss: this model has a logit bias"),
        (
            "output_dir=ftp://host/run",
            "output_dir is a directory: a path in the file system, gs:// or s3://; got 'ftp://host/run'",
        ),
        ("global_batch_size=12", "global_batch_size: must divide over 8 devices; got 12. The nearest that does is 8"),
        ("microbatch_size=5", "microbatch_size divides global_batch_size; got 5 and 16. The nearest that does is 4"),
        ("train_samples=3", "train_samples: 3 samples make no batch of 16"),
        ("train_samples=5%", "train_samples: the length of a run is given in samples or epochs"),
        ("data.train.0.shards=gone-*.tfrecord", "data.train: no shard at"),
        ("evaluation.0.data.shards=gone.tfrecord", "evaluation.0: no shard at"),
        ('evaluation.0.classnames=["red", "blue"]', "evaluation.0: labels go from 0 to 1 for 2 class names; got 3"),
        ("evaluation.0.data.label_key=hue", "evaluation.0: none of 21 samples could be used"),
        ("evaluation.0.classnames=gone.txt", "evaluation.0: no classnames found at gone.txt"),
        ('model={"preset": "siglip-b16-224"}', "siglip-b-16-224"),
        ("model.config.text.vocab_size=8", "ids go up to 10, but the model has a vocabulary of 8"),
        ("model.config.preprocess.tokenizer=./gone", "model.config.preprocess.tokenizer"),
        ("model.config.vision.num_heads=5", "model.config.vision: width must be a multiple of num_heads"),
        ('mesh={"data": 3}', "mesh: the mesh axes must multiply to the number of devices, 8"),
        ("sharding=fdsp", "Did you mean 'fsdp'?"),
        ("sharding=tensor", "sharding: 'mlp' is divided over the mesh axis model, which spans 1 of 8 devices"),
        ('sharding=[["mlp", "expert"]]', "sharding: rule ('mlp', 'expert') names ['expert']; the mesh has axes"),
        ('sharding={"activation_dims": 3}', "sharding.activation_dims: must be 1 or 2; got 3"),
        ("schedule.warmup=140", "schedule: warmup must fit in the run"),
        ("schedule.warmup=3 moons", "schedule: warmup is a number of steps"),
    ],
)
def test_what_cannot_be_is_one_message(squares, tmp_path, capsys, override, message):
    output = f"output_dir={tmp_path / 'run'}"
    assert message in refused(capsys, "run", squares / "config.json", "--dry-run", "--set", output, "--set", override)
    assert not (tmp_path / "run").exists()


def test_a_strategy_without_its_mesh_axis_is_refused(squares, tmp_path, capsys):
    arguments = ("run", squares / "config.json", "--dry-run", "--set", f"output_dir={tmp_path / 'run'}")
    message = refused(capsys, *arguments, "--set", "sharding=fsdp", "--set", 'mesh={"data": 8}')
    assert "sharding: 'mlp' is divided over the mesh axis fsdp, which spans 1 of 8 devices" in message


def test_a_dry_run_shows_everything_warns_and_writes_nothing(squares, tmp_path, capsys):
    arguments = ["run", str(squares / "config.json"), "--dry-run", "--set", f"output_dir={tmp_path / 'run'}"]
    more = ["schedule.warmup=50%", 'checkpoint={"every_minutes": null}', "microbatch_size=8"]
    assert main([*arguments, *(part for override in more for part in ("--set", override))]) == 0
    screen = capsys.readouterr().out
    for line in ("random initialisation", "96 pairs in 2 shards", "16 = 8 devices × 1 per device × 2 microbatches"):
        assert line in screen
    kernel = next(line for line in screen.splitlines() if "vision/blocks/mlp/fc1/kernel" in line)
    assert kernel.split()[1:] == ["2", "×", "32", "×", "128", "whole", "32,768"]
    assert "warm-up takes 60 of 120 steps" in screen
    assert "no checkpoint will be written before the end" in screen
    assert not (tmp_path / "run").exists()


def test_init_writes_a_config_that_runs(squares, tmp_path, monkeypatch, capsys):
    shutil.copytree(squares, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    flags = ["--shards", "data/train-*.tfrecord", "--output-dir", "out", "--batch-size", "32", "--to", "configs/a.json"]
    assert main(["init", *flags]) == 0
    overrides = ["--set", "data.tokenizer=data/words", "--set", "train_samples=64"]
    assert main(["run", "configs/a.json", "--dry-run", *overrides]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert "is there already" in refused(capsys, "init", *flags)
    assert "--shards: no shard at" in refused(capsys, "init", "--shards", "nothing/*.tar")
    assert "--preset: one of" in refused(capsys, "init", *flags[:2], "--preset", "vit")


def test_schema_is_a_schema(capsys):
    assert main(["schema"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {"output_dir", "model", "data", "global_batch_size", "train_samples"} <= set(made["required"])


def test_help_waits_for_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "clip_train.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"jax", "numpy", "optax", "pydantic", "rich", "clip_models", "clip_data"}
