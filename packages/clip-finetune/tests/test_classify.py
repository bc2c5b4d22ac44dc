import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_data.tfrecord import write_examples
from clip_finetune import LinearHead, load_backbone
from clip_finetune.backbone import labelled_features
from clip_finetune.classify import choose_weight_decay, fit_probe
from clip_finetune.cli import main
from clip_finetune.config import ProbeConfig
from clip_models import ClipConfig, TextConfig, VisionConfig, init, save_pretrained

MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2),
    text=TextConfig(vocab_size=8, max_length=4, width=32, num_layers=1, num_heads=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, and pictures that are reddish or bluish."""
    folder = tmp_path_factory.mktemp("colours")
    save_pretrained(folder / "model", MODEL, init(MODEL, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def example(number):
        pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)
        label = number % 2
        pixels[..., 2 * label] += 100
        Image.fromarray(pixels).save(png := io.BytesIO(), "PNG")
        return {"key": str(number), "png": png.getvalue(), "label": label}

    write_examples(str(folder / "train.tfrecord"), [example(n) for n in range(60)])
    write_examples(str(folder / "test.tfrecord"), [example(n) for n in range(30)])
    unlabelled = {name: value for name, value in example(0).items() if name != "label"}
    write_examples(str(folder / "unlabelled.tfrecord"), [unlabelled])
    (folder / "classnames.txt").write_text("red\nblue\n")
    config = {
        "output_dir": "out",
        "model": "model",
        "train": {"format": "tfrecord", "shards": "train.tfrecord"},
        "test": {"format": "tfrecord", "shards": "test.tfrecord"},
        "batch_size": 16,
    }
    (folder / "classify.json").write_text(json.dumps(config))
    return folder


def test_a_probe_on_a_directory_writes_its_results(folder, tmp_path, capsys):
    assert main(["classify", str(folder / "classify.json"), "--set", f"output_dir={tmp_path / 'out'}"]) == 0
    assert "lp_acc1" in capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metrics"]["lp_acc1"] == 1.0
    assert np.trace(results["confusion"]) == results["num_samples"] == 30
    assert results["classnames"] == ["red", "blue"]
    # The saved head gives the reported answers on features as they come.
    from clip_data import SourceConfig

    head = np.load(tmp_path / "out/head.npz")
    source = SourceConfig(format="tfrecord", shards=str(folder / "test.tfrecord"))
    features, labels = labelled_features(*load_backbone(str(folder / "model")), source, batch_size=16)
    assert features.shape == (30, 64)
    np.testing.assert_array_equal((features @ head["kernel"] + head["bias"]).argmax(axis=1), labels)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=x", "modle: unknown key. Did you mean 'model'?"),
        ("model=./gone", "model: "),
        ("train.shards=gone.tfrecord", "train: no shard at"),
        ("train.shards=unlabelled.tfrecord", "train: every sample needs an integer label"),
        ('classnames=["one"]', "classnames: 1 names for labels up to 1"),
        ("probe.weight_decay=[]", "probe: weight_decay lists at least one strength"),
    ],
)
def test_what_cannot_be_is_one_message(folder, tmp_path, capsys, monkeypatch, override, message):
    monkeypatch.chdir(folder)
    output = f"output_dir={tmp_path / 'out'}"
    assert main(["classify", str(folder / "classify.json"), "--set", output, "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_taken_directory_is_refused(folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert main(["classify", str(folder / "classify.json"), "--set", f"output_dir={tmp_path}"]) == 2
    assert "is there already and not empty" in capsys.readouterr().err


def test_the_probe_is_the_same_whatever_the_scale_of_its_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)).astype(np.float32)
    labels = (features[:, 0] > 0.2).astype(np.int32)
    head, probe = LinearHead(num_classes=2, width=8), ProbeConfig()
    logits = [
        np.asarray(head.apply(fit_probe(head, x, labels, probe, weight_decay=0.1, seed=0), jnp.asarray(x)))
        for x in (features, 1000 * features + 5)
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-2)
    assert (logits[0].argmax(axis=1) == labels).mean() > 0.95


def test_among_equals_the_strongest_decay_is_taken():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 40)).astype(np.float32), np.ones(60, np.int32)
    head, probe = LinearHead(num_classes=2, width=40), ProbeConfig(num_steps=20, weight_decay=(0.0, 300.0))
    assert choose_weight_decay(head, features, labels, probe, seed=0) == 300.0
