"""Several processes as one run; run as a program, this file is one of them."""

import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import clip_models
from clip_data import DataConfig, Pipeline, SourceConfig, Tokenizer
from clip_data.tfrecord import write_examples
from clip_models import ClipConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_sharding import (
    MeshConfig,
    batch_readers,
    gather_items,
    make_mesh,
    shardings,
    start_processes,
    strategy,
    to_global,
)
from clip_train import cli, processes, screen
from clip_train.agreement import sum_counts
from clip_train.checkpoint import Checkpoints
from clip_train.config_file import ConfigError, located
from clip_train.evaluate import Encoders, EvaluationConfig, evaluate
from clip_train.inputs import data_config
from clip_train.loop import Event, fit
from clip_train.probe import ProbeConfig
from clip_train.screen import make_console, say_of_this_process
from clip_train.state import abstract_state, create_state
from clip_train.step import make_step
from clip_train.stop import Stop

WIDTH, ROWS = 8, 16


class Losses(list):
    """Takes each step's loss."""

    def push(self, step, metrics, **_):
        self.append((step, float(metrics["loss"])))

    def settle(self):
        pass


@contextlib.contextmanager
def samples(mesh):
    """A pipeline over pictures of which every seventh is none."""
    index, count = batch_readers(mesh)
    Image.new("RGB", (4, 4)).save(picture := io.BytesIO(), "PNG")
    with tempfile.TemporaryDirectory() as folder:
        write_examples(f"{folder}/0.tfrecord", [{"png": picture.getvalue() if n % 7 else b"<html>"} for n in range(40)])
        config = DataConfig(
            sources=(SourceConfig(format="tfrecord", shards=f"{folder}/*.tfrecord"),),
            image_size=4,
            tokenizer=None,
            text_length=1,
            max_bad_fraction=0.5,
        )
        options = {"process_index": index, "process_count": count}
        together = functools.partial(sum_counts, gather=functools.partial(gather_items, mesh=mesh))
        with Pipeline(config, global_batch_size=ROWS, **options, sum_counts=together) as pipeline:
            yield pipeline


def train(directory, num_steps, each_step=lambda step, stop: None):
    """Fit a line, its weights divided over all devices, from where the directory's checkpoint is.

    Save at every fifth step and at the end. Beside what is learnt from, pictures are read.
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    index, count = batch_readers(mesh)
    mine = slice(index * ROWS // count, (index + 1) * ROWS // count)

    def init():
        return {"w": jnp.zeros(WIDTH)}

    def loss_fn(params, batch, key):
        return jnp.mean((batch["x"] @ params["w"] - batch["x"].sum(axis=1)) ** 2), {}

    def batches(step):
        while True:
            next(pipeline)
            x = np.random.default_rng(step).normal(size=(ROWS, WIDTH)).astype(np.float32)
            yield to_global({"x": x[mine]}, mesh)
            step += 1

    placed = shardings(strategy("fsdp"), mesh, {"w": ("embed",)}, jax.eval_shape(init))
    tx, losses = optax.adam(1e-2), Losses()
    abstract = abstract_state(init, tx, placed, mesh)
    with Checkpoints(directory) as checkpoints, Stop() as stop, samples(mesh) as pipeline:
        first_step = checkpoints.latest_step() or 0
        state = create_state(init, tx, abstract)
        if first_step:
            _, state, cursor, _ = checkpoints.restore(abstract)
            pipeline.seek(cursor)
        state, done = fit(
            state,
            make_step(loss_fn, tx, abstract=abstract),
            batches(first_step),
            num_steps=num_steps,
            log=losses,
            first_step=first_step,
            events=[
                Event(lambda step, state: each_step(step, stop), every_steps=1),
                Event(lambda step, state: None, every_seconds=0.01),
                Event(lambda step, state: checkpoints.save(step, state, pipeline.cursor()), every_steps=5),
            ],
            stop=stop,
        )
        cursor = pipeline.cursor()
        checkpoints.save(done, state, cursor)
    return losses, cursor, stop.signal


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Of what is compared with itself: optimising it takes longer than running it.
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start(*command, devices=1, flags=""):
    flags = f"--xla_force_host_platform_device_count={devices} {flags}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command], env=environment, text=True, **pipes)


def start_two(place, *more):
    port = free_port()
    return [start(__file__, str(place), str(port), str(i), *more) for i in range(2)]


def wait_for(line, process):
    while not (printed := process.stdout.readline()).startswith(line):
        assert printed or process.poll() is None, process.communicate()


def check_continued(place, losses, fresh):
    """What goes on in one process from there is what one process does by itself."""
    expected, counted, _ = train(fresh, losses[-1][0] + 5)
    more, cursor, _ = train(place, losses[-1][0] + 5)
    assert cursor == counted
    assert cursor["counts"]["run"]["bad_image"] > 3
    assert more[0][0] > 1
    together = dict([*losses, *more])
    assert list(together) == [step for step, _ in expected]
    np.testing.assert_allclose(list(together.values()), [loss for _, loss in expected], rtol=1e-5)
    return more[0][0] - 1


@pytest.mark.parametrize("where", ["step 3", "evaluating"])
def test_two_processes_stop_together_and_another_number_of_them_continues(tmp_path, where):
    both = start_two(tmp_path / "two", where)
    wait_for(where, both[0])
    both[1].send_signal(signal.SIGTERM)
    (printed, error), _ = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [143, 143], error
    losses = [tuple(pair) for pair in json.loads(printed.splitlines()[-1])]
    stopped = losses[-1][0]
    assert str(stopped) in os.listdir(tmp_path / "two")
    if where == "evaluating":
        assert stopped == 4
    else:
        assert check_continued(tmp_path / "two", losses, tmp_path / "one") == stopped


def test_a_process_that_is_asked_to_end_before_it_trains_does(tmp_path):
    both = start_two(tmp_path, "and wait")
    for process in both:
        wait_for("joined", process)
    for process in both:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert both[0].returncode == -signal.SIGTERM
    assert both[1].returncode != 0  # by the signal, or for the loss of the first


def test_what_two_killed_processes_left_in_a_bucket_is_whole(bucket, tmp_path):
    if bucket.startswith("s3"):
        pytest.skip("one store is enough")
    both = start_two(f"{bucket}/two")
    wait_for("step 14", both[0])
    for process in both:
        process.kill()
        process.communicate()
    losses, *_ = train(tmp_path / "before", 14)
    assert check_continued(f"{bucket}/two", losses, tmp_path / "one") in (5, 10, 15)


EVALUATIONS = {
    "zeroshot_classification": {},
    "zeroshot_retrieval": {"positives": "caption"},
    "linear_probe": {"probe": ProbeConfig(epochs=1)},
}


def evaluated(squares, devices):
    """What each evaluation finds with a random model; of the last batch, a second process has no row."""
    model = ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2),
        text=TextConfig(vocab_size=16, max_length=6, width=16, num_layers=1, num_heads=2),
        preprocess=PreprocessConfig(text_length=6, tokenizer=str(squares / "words")),
    )
    encoders = Encoders(model, make_mesh(MeshConfig(), devices))
    rng = np.random.default_rng(0)  # drawn by hand: that compiles nothing
    shapes = jax.eval_shape(lambda: clip_models.init(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    data = data_config(model)
    sources = {
        part: SourceConfig(format="tfrecord", shards=f"{squares}/{part}-*.tfrecord") for part in ("train", "test")
    }
    results = []
    for task, options in EVALUATIONS.items():
        learns = {"train": sources["train"]} if task == "linear_probe" else {}
        config = EvaluationConfig(name=task, task=task, data=sources["test"], batch_size=16, **learns, **options)
        result = evaluate(config, encoders, params, data, Tokenizer.of(data))
        results.append([result.num_samples, *result.metrics.values()])
    return results


def test_two_processes_evaluate_as_one(squares):
    port = free_port()
    both = [start(__file__, str(squares), str(port), str(i), "measure", flags=HASTY) for i in range(2)]
    try:
        (printed, error), (also, _) = [process.communicate(timeout=300) for process in both]
    finally:  # one that fails waits for the other
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], error
    found = json.loads(printed.splitlines()[-1])
    assert found == json.loads(also.splitlines()[-1])
    assert [num for num, *_ in found] == [21, 21, 21]
    for ours, alone in zip(found, evaluated(squares, jax.devices()[:1]), strict=True):
        np.testing.assert_allclose(ours, alone, atol=1e-6)


def test_what_one_process_cannot_is_told_once_and_ends_all(squares, tmp_path):
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    command = ("-m", "clip_train.cli", "run", str(squares / "config.json"), "--set", f"output_dir={tmp_path / 'run'}")
    lacking = ("--set", "evaluation.1.data.shards=gone.tfrecord")
    first = start(*command, *place, "--process-id", "0")
    second = start(*command, *place, "--process-id", "1", *lacking)
    (_, told), (printed, _) = first.communicate(timeout=120), second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (2, 2), told + printed
    assert "error: all processes of a run are given the same config; that of process 1 differs:" in told
    assert "evaluation.1.data.shards" in told
    assert not [line for line in printed.splitlines() if "Gloo" not in line]
    assert not (tmp_path / "run").exists()


def in_the_middle(monkeypatch, faults):
    """This process is the second of three, whose faults are these."""
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "exchange", lambda mine: [faults.get(0), mine, faults.get(2)])
    monkeypatch.setattr(processes.jax, "process_index", lambda: 1)


def test_what_one_process_refuses_all_refuse(monkeypatch, capsys):
    in_the_middle(monkeypatch, {2: "data.train: no shard at a.tar"})

    def action():
        with processes.together():
            return 0

    assert cli.guarded(action, debug=False) == 2
    assert capsys.readouterr().err == ""  # the first process tells it
    monkeypatch.setattr(processes.jax, "process_index", lambda: 0)
    assert cli.guarded(action, debug=False) == 2
    assert capsys.readouterr().err == "error: process 2 of 3: data.train: no shard at a.tar\n"


def test_a_process_that_has_something_to_say_names_itself(monkeypatch, capsys):
    say_of_this_process(make_console())("No batch for 30 s")
    assert capsys.readouterr() == ("Warning: No batch for 30 s\n", "")
    monkeypatch.setattr(screen, "several", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    say_of_this_process(make_console())("No batch for 30 s")
    printed, told = capsys.readouterr()
    assert printed == ""
    assert re.fullmatch(r"Warning: process 1 of 1, on \S+: No batch for 30 s\n", told)


def test_a_fault_of_all_is_told_as_that_of_one(monkeypatch):
    in_the_middle(monkeypatch, {0: "mesh: no", 2: "mesh: no"})
    with pytest.raises(processes.AgreedError, match=r"^mesh: no$"), processes.together(), located("mesh"):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ConfigError("data.train: too many"), 2, "error: data.train: too many\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
        (RuntimeError("the disk is full"), 1, "RuntimeError: the disk is full\n"),
    ],
)
def test_a_process_that_fails_alone_tells_why_and_waits_for_nobody(monkeypatch, capsys, error, status, told):
    in_the_middle(monkeypatch, {})
    left = []
    monkeypatch.setattr(processes, "leave", left.append)

    def action():
        raise error

    cli.guarded(action, debug=False)
    assert left == [status]
    assert capsys.readouterr().err.endswith(told)


def main():
    directory, port, process_id, *more = sys.argv[1:]
    start_processes(f"127.0.0.1:{port}", int(process_id), 2)
    if "measure" in more:
        sys.stdout.write(json.dumps(evaluated(Path(directory), None)) + "\n")
        return
    sys.stdout.write("joined\n")
    if "and wait" in more:
        time.sleep(600)

    def each_step(step, stop):
        sys.stdout.write(f"step {step}\n")
        for _ in stop.between(range(10**6)) if "evaluating" in more and step == 4 else ():
            sys.stdout.write("evaluating\n")
            time.sleep(0.1)
        time.sleep(0.1)

    losses, _, number = train(directory, 10**6, each_step)
    sys.stdout.write(json.dumps(losses) + "\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
