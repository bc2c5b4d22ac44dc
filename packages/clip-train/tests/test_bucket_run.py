"""Runs in buckets, against stores on this machine: the ones that clip-data's tests read from."""

import dataclasses
import signal
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_data import SourceConfig
from clip_data.buckets import delete_object, list_below, read_object, write_object
from clip_sharding import MeshConfig, make_mesh, shardings, strategy
from clip_train import load_run
from clip_train.bucket_steps import BucketSteps
from clip_train.checkpoint import Checkpoints
from clip_train.cli import main
from clip_train.evaluate import EvaluationConfig, Prompts, dataset_type, read_prompts
from clip_train.jsonl import read_jsonl
from clip_train.room import Room
from clip_train.state import abstract_state, create_state


@pytest.fixture(scope="module")
def abstract():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    placed = shardings(strategy("fsdp"), mesh, {"w": ("embed",)}, jax.eval_shape(make))
    return abstract_state(make, optax.adam(1e-3), placed, mesh)


def make():
    return {"w": jax.random.normal(jax.random.key(0), (512,))}


def save(directory, abstract, *steps, say=None, keep=3):
    with Checkpoints(directory, keep=keep, say=say) as checkpoints:
        state = create_state(make, optax.adam(1e-3), abstract)
        for step in steps:
            state = jax.tree.map(lambda x: x + np.ones((), x.dtype), state)
            checkpoints.save(step, state, {"batch": step})
        checkpoints.wait()


def restore(directory, abstract):
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(abstract)
        return restored.step, restored.torn, restored.cursor, np.asarray(restored.state.params["w"])


def test_the_newest_steps_are_kept_and_the_newest_whole_one_is_read(bucket, abstract, tmp_path, monkeypatch):
    place = f"{bucket}/checkpoints"
    save(place, abstract, 10, 20, 30, 40)
    assert sorted({name.split("/")[0] for name in list_below(place)}) == ["20", "30", "40"]
    expected = np.asarray(make()["w"]) + 1 + 1 + 1  # one by one: float32 rounds each
    step, torn, cursor, w = restore(place, abstract)
    assert (step, torn, cursor) == (40, (), {"batch": 40})
    np.testing.assert_array_equal(w, expected + 1)

    (listed,) = [name for name in list_below(f"{place}/40") if name.startswith("whole.")]
    delete_object(f"{place}/40/{listed}")  # killed while it was written
    name, size = max(list_below(f"{place}/30").items(), key=lambda item: item[1])
    (tmp_path / "half").write_bytes(read_object(f"{place}/30/{name}")[: size // 2])
    write_object(f"{place}/30/{name}", tmp_path / "half")
    step, torn, cursor, _ = restore(place, abstract)
    assert (step, torn, cursor) == (20, (30,), {"batch": 20})
    assert restore(place, abstract)[:2] == (20, ())  # put aside, and told once
    sent = []
    monkeypatch.setattr(BucketSteps, "_send", lambda *args, send=BucketSteps._send: (sent.append(args[1]), send(*args)))
    save(place, abstract, 30, 30)  # the second time it is on its way
    assert sent == [30]
    assert restore(place, abstract)[:2] == (30, ())


def test_what_several_processes_write_counts_once_all_have(bucket):
    place, x = f"{bucket}/several", {"x": jnp.arange(3.0)}
    before = BucketSteps(place, process_index=0, process_count=2, start="a")
    first, second = (BucketSteps(place, process_index=i, process_count=2, start="b") for i in range(2))
    for steps, trees in (before, {}), (second, {"params": x}):
        steps.save(1, trees, {}, before=lambda: None)
        steps.wait()
    assert first.steps() == []  # two starts, each of which wrote a part
    first.save(1, {}, {"step": 1}, before=lambda: None)
    first.wait()
    assert first.steps() == [1]
    read = first.read(1, {"params": jax.eval_shape(lambda: x)})
    assert read["progress"] == {"step": 1}
    np.testing.assert_array_equal(read["params"]["x"], x["x"])


def test_a_store_that_fails_tears_nothing(bucket, abstract, monkeypatch):
    place, told = f"{bucket}/failing", []
    save(place, abstract, 1)

    def refuse(path, *_):
        raise OSError(f"{path} does not answer: 503")

    with monkeypatch.context() as patch:
        patch.setattr("clip_train.bucket_steps.write_object", refuse)
        with pytest.raises(OSError, match=f"The checkpoint of step 3 could not be written to {place}"):
            save(place, abstract, 2, 3, say=told.append)
    assert "The checkpoint of step 2 could not be written" in told[0]
    with monkeypatch.context() as patch:
        patch.setattr("clip_train.bucket_steps.read_object", refuse)
        with pytest.raises(OSError, match=r"step 1 .* cannot be read now: .* 503"), Checkpoints(place) as checkpoints:
            checkpoints.restore(abstract)
    assert restore(place, abstract)[:2] == (1, ())


def test_what_lies_beside_a_data_sets_shards_is_found(bucket, tmp_path):
    def put(name, text):
        (tmp_path / "text").write_text(text)
        write_object(f"{bucket}/{name}", tmp_path / "text")

    put("set/classnames.txt", "red\n\nblue\n")
    put("set/test/zeroshot_classification_templates.txt", "a {c} square\n\n")
    put("set/dataset_type.txt", "multilabel\n")
    put("templates.json", '{"red": ["it is red"], "": ["it is"], "blue": ["it is {c}"]}')
    source = SourceConfig(format="webdataset", shards=f"{bucket}/set/test/*.tar")
    config = EvaluationConfig(name="x", task="zeroshot_classification", data=source)
    assert read_prompts(config) == Prompts(("red", "", "blue"), ("a {c} square",))
    assert dataset_type(source) == "multilabel"
    named = read_prompts(dataclasses.replace(config, templates=f"{bucket}/templates.json"))
    assert named.of("blue") == ["it is blue"]
    outside = SourceConfig(format="webdataset", shards=f"{bucket}/0.tar")
    with pytest.raises(ValueError, match=f"no classnames found at {bucket}/classnames.txt: give"):
        read_prompts(dataclasses.replace(config, data=outside))


def test_a_killed_process_leaves_no_room_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "from clip_train.room import Room; import os; room = Room('gs://a/b'); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    first, second = Room("gs://a/b"), Room("gs://a/b")
    assert len(list(tmp_path.iterdir())) == 2
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_bucket_continues_where_it_was(compiled_once, bucket, squares, tmp_path, capsys, monkeypatch):
    if bucket.startswith("s3"):
        pytest.skip("what differs between stores is shown above")
    place = f"{bucket}/runs/a"
    changes = ["train_samples=96", "checkpoint.every_steps=2", "evaluation=[]", f"output_dir={place}"]
    arguments = ["run", str(squares / "config.json"), *(word for change in changes for word in ("--set", change))]
    send = BucketSteps._send

    def fails(self, step, *content):
        if step > 2:
            raise OSError("503")
        send(self, step, *content)

    with monkeypatch.context() as patch:
        patch.setattr(BucketSteps, "_send", fails)
        assert main(arguments) == 2
    assert f"The checkpoint of step 6 could not be written to {place}/checkpoints: 503" in capsys.readouterr().err
    before = rows_of(place, tmp_path)
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5, 6]

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Continuing from the checkpoint of step 2." in printed
    assert f"{place}/report.html" in printed
    names = {name for name in list_below(place) if not name.startswith("checkpoints/")}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "results.json", "report.html"}
    assert [(row["step"], row["loss"]) for row in rows_of(place, tmp_path)] == [
        (row["step"], row["loss"]) for row in before
    ]
    assert load_run(place)[0].text.max_length == 6

    assert main(["run", place]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert main(["run", place, "--set", "seed=1"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert main(["run", place, "--set", "output_dir=gs://nowhere/run"]) == 2
    assert "output_dir: there is no bucket nowhere" in capsys.readouterr().err


def rows_of(place, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(read_object(f"{place}/metrics.jsonl"))
    return read_jsonl(tmp_path / "metrics.jsonl")
