import csv
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_data import SourceConfig
from clip_finetune import FinetuneConfig, load_backbone, load_classifier
from clip_finetune.cli import main
from clip_finetune.linear_probe import fit_head
from clip_finetune.lora import lora_init, lora_merge
from clip_finetune.objective import sample_loss
from clip_finetune.split import Split
from clip_models import ClipConfig, TextConfig, VisionConfig, init
from clip_train.probe import ProbeConfig

MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2),
    text=TextConfig(vocab_size=8, max_length=8, width=32, num_layers=1, num_heads=2),
)
pytestmark = pytest.mark.usefixtures("one_device")

FAST = [
    "--set",
    "tune.epochs=2",
    "--set",
    "probe.weight_decay=0",
    "--set",
    "tune.optimizer.learning_rate=1e-3",
    "--set",
    "tune.batch_size=16",
]


def test_a_folder_of_class_folders_becomes_predictions(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["classify", "--model", str(folder / "model"), "--data", str(folder / "pictures"), "--to", str(out)]
    assert main([*arguments, "--set", "batch_size=16"]) == 0
    assert "lp_acc1" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["metrics"]["lp_acc1"] == 1.0
    assert results["task"] == "linear_probe"
    assert results["classnames"] == ["red things", "sea"]
    assert 5 < results["num_samples"] == np.trace(results["confusion"]) < 40
    assert results["skipped_samples"] == {"bad_image": 1}  # in whichever part it is
    assert "sea/broken" in results["unusable_samples"][0]
    assert "http" not in (out / "report.html").read_text()

    table = tmp_path / "labels.csv"
    images = str(folder / "pictures" / "**" / "*.png")
    assert main(["predict", "--model", str(out), "--images", images, "--to", str(table), "--batch-size", "32"]) == 0
    assert "broken.png" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == 80
    assert all(row["label"] == row["image"].split("/")[-2] for row in rows)
    assert float(rows[0]["p(red things)"]) + float(rows[0]["p(sea)"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_a_mode_leaves_alone_is_the_same_to_the_bit(folder, tmp_path, mode):
    arguments = ["classify", str(folder / "classify.json"), "--mode", mode, "--to", str(tmp_path / "out"), *FAST]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metrics"]["acc1"] == 1.0
    assert [epoch["epoch"] for epoch in results["epochs"]] == [1, 2]
    classifier, params = load_classifier(tmp_path / "out")
    assert classifier.classnames == ("red", "blue")
    before = load_backbone(str(folder / "model"))[1]["vision"]
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, params["vision"])
    kernels = same["blocks"]["mlp"]["fc1"]["kernel"], same["patch_embedding"]["kernel"]
    assert kernels == {"full": (False, False), "lora": (False, True)}[mode]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=x", "modle: unknown key. Did you mean 'mode'?"),
        ("model=./gone", "model: "),
        ("train.shards=gone.tfrecord", "train: no shard at"),
        ("train.shards=unlabelled.tfrecord", "train: "),
        ('classnames=["one"]', "classnames: a classifier needs at least two classes; got one"),
        ('test={"format": "class_folder", "shards": "three"}', "three has 3 class folders (a, b, c), and there are 2"),
        ("class_weights=[1, 2, 3]", "class_weights: one for each of 2 classes"),
        ("mode=zero-shot", "mode: a zero-shot head is made of class names in words, and the model has no tokenizer"),
        ("probe.epochs=0", "probe: epochs is at least 1"),
    ],
)
def test_what_cannot_be_is_one_message(folder, tmp_path, capsys, monkeypatch, override, message):
    monkeypatch.chdir(folder)
    if "three" in override and not (folder / "three").exists():
        for name in "abc":
            shutil.copytree(folder / "pictures" / "red things", folder / "three" / name)
    output = f"output_dir={tmp_path / 'out'}"
    assert main(["classify", str(folder / "classify.json"), "--set", output, "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_class_folder_and_a_taken_directory_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "void").mkdir()
    arguments = ["classify", "--model", str(folder / "model"), "--data", str(tmp_path / "pictures")]
    assert main([*arguments, "--to", str(tmp_path / "out")]) == 2
    assert "these are empty: void" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("")
    assert main(["classify", str(folder / "classify.json"), "--set", f"output_dir={tmp_path}"]) == 2
    assert "is not empty and holds no run of ours" in capsys.readouterr().err


def test_the_probe_is_the_same_whatever_the_scale_of_its_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)).astype(np.float32)
    labels = (features[:, 0] > 0.2).astype(np.int32)
    options = {"num_classes": 2, "loss": sample_loss(2), "seed": 0}
    logits = []
    for x in (features, 1000 * features + 5):
        head, decay = fit_head(x[:150], labels[:150], (x[150:], labels[150:]), ProbeConfig(weight_decay=0.1), **options)
        assert decay == 0.1
        logits.append(x @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-2)
    assert (logits[0].argmax(axis=1) == labels).mean() > 0.9


def test_the_probe_agrees_with_logistic_regression():
    # Correlated features of uneven scales; scikit-learn's LogisticRegression on standardised ones, its C swept on the
    # same validation samples, has 96.56 % of the test samples right.
    rng = np.random.default_rng(192)
    means = rng.normal(size=(10, 192)) * 0.35
    mix = rng.normal(size=(192, 192)) / np.sqrt(192) * np.geomspace(1, 0.03, 192)

    def draw(num):
        labels = rng.integers(0, 10, num)
        return ((means[labels] + rng.normal(size=(num, 192))) @ mix + 0.5).astype(np.float32), labels.astype(np.int32)

    (features, labels), held_out, (unseen, truth) = draw(1300), draw(400), draw(8000)
    config = FinetuneConfig(output_dir="", model="", train=SourceConfig(format="csv", shards="-")).probe
    head, _ = fit_head(features, labels, held_out, config, num_classes=10, loss=sample_loss(10), seed=1)
    right = ((unseen @ head["kernel"] + head["bias"]).argmax(axis=1) == truth).mean()
    assert right == pytest.approx(0.9656, abs=0.005)


def test_losses_weigh_smooth_and_take_several_labels():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    plain = sample_loss(2)(logits, jnp.array([0, 0]))
    weighted = sample_loss(2, class_weights=(3.0, 1.0))(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(weighted, 3 * plain, rtol=1e-6)
    smooth = sample_loss(2, label_smoothing=0.2)(logits, jnp.array([0, 0]))
    other = sample_loss(2)(logits, jnp.array([1, 1]))
    np.testing.assert_allclose(smooth, 0.9 * plain + 0.1 * other, rtol=1e-6)
    several = sample_loss(2)(logits, jnp.array([[1, 1], [0, 0]]))
    expected = np.log1p(np.exp([[-2.0, 0.0], [0.0, 1.0]])).mean(axis=1)
    np.testing.assert_allclose(several, expected, rtol=1e-6)
    assert sample_loss(2) is sample_loss(2)


def test_low_rank_updates_begin_as_nothing_and_add_a_product():
    tower = init(MODEL, jax.random.key(0))["vision"]
    updates = lora_init(tower, jax.random.key(1), rank=2)
    assert len(updates) == 6
    jax.tree.map(np.testing.assert_array_equal, lora_merge(tower, updates, alpha=4.0), tower)
    name = "blocks.mlp.fc1.kernel"
    updates[name]["b"] += 1.0
    merged = lora_merge(tower, updates, alpha=4.0)["blocks"]["mlp"]["fc1"]["kernel"]
    expected = tower["blocks"]["mlp"]["fc1"]["kernel"] + 2.0 * updates[name]["a"] @ np.ones((1, 2, 128))
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_a_split_leaves_no_record_out_and_none_in_two_parts():
    from clip_data import Record

    records = [Record(key=f"{n}", image=b"", caption="", label=0, metadata={}, shard="x/s", row=n) for n in range(500)]
    parts = {part: Split(part, 0.1, 0.3, seed=1) for part in ("train", "validation", "test")}
    kept = {part: [r.row for r in records if split(r) is not None] for part, split in parts.items()}
    assert sorted(row for rows in kept.values() for row in rows) == list(range(500))
    assert abs(len(kept["test"]) - 150) < 40
    assert abs(len(kept["validation"]) - 50) < 25
