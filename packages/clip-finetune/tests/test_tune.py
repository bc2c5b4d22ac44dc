import json
import os
import signal

import jax
import numpy as np
import pytest

from clip_data import SourceConfig
from clip_finetune import load_classifier
from clip_finetune.cli import main
from clip_finetune.features import labelled_features
from clip_finetune.pictures import Pictures
from clip_models import load_pretrained
from clip_train.jsonl import read_jsonl

pytestmark = pytest.mark.usefixtures("one_device")


def arguments(folder, out):
    changes = [
        "tune.head=random",
        "tune.epochs=3",
        "tune.optimizer.learning_rate=1e-3",
        "tune.batch_size=16",
        "tune.checkpoint.every_steps=2",
    ]
    sets = [part for change in changes for part in ("--set", change)]
    return ["classify", str(folder / "classify.json"), "--mode", "attention", "--to", str(out), *sets]


def test_a_stopped_tuning_continues_to_the_same_weights(folder, tmp_path, monkeypatch, capsys):
    assert main(arguments(folder, tmp_path / "whole")) == 0
    steps = [row["step"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]
    import clip_finetune.tune as module

    made = []

    def batches(*args, original=module._batches):
        for number, batch in enumerate(original(*args)):
            if number == 6 and not made:
                made.append(None)
                os.kill(os.getpid(), signal.SIGTERM)  # the batch has come, and is not used
            yield batch

    monkeypatch.setattr(module, "_batches", batches)
    assert main(arguments(folder, tmp_path / "cut")) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after step 6, and saved" in capsys.readouterr().out
    assert main(arguments(folder, tmp_path / "cut")) == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert results[0] == results[1]
    trees = [load_classifier(tmp_path / name)[1] for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    # The frozen tower is what it was, to the bit.
    jax.tree.map(np.testing.assert_array_equal, trees[0]["vision"], load_pretrained(folder / "eyes")[1]["vision"])
    assert [row["step"] for row in read_jsonl(tmp_path / "cut" / "metrics.jsonl")] == steps == list(range(1, 10))
    assert not (tmp_path / "cut" / "tuning").exists()
    assert main(arguments(folder, tmp_path / "cut")) == 0
    assert "This task is finished" in capsys.readouterr().out


def test_features_are_found_again_while_weights_and_samples_are_the_same(folder, tmp_path):
    config, params = load_pretrained(folder / "eyes")

    def samples(name):
        return Pictures(SourceConfig(format="tfrecord", shards=str(folder / name)), ("red", "blue"))

    def features(params, samples):
        return labelled_features(config, params, samples, batch_size=16, cache=tmp_path / "kept")

    first = features(params, samples("test.tfrecord"))
    (file,) = (tmp_path / "kept").iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(features(params, samples("test.tfrecord")).features, first.features)
    assert file.stat().st_mtime_ns == written
    changed = jax.tree.map(lambda x: x, params)
    changed["vision"]["norm"]["bias"] = changed["vision"]["norm"]["bias"].at[0].add(1e-3)
    assert not np.array_equal(features(changed, samples("test.tfrecord")).features, first.features)
    features(params, samples("train.tfrecord"))
    assert len(list((tmp_path / "kept").iterdir())) == 3
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(features(params, samples("test.tfrecord")).features, first.features)
