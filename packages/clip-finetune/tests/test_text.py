import csv
import json

import numpy as np
import pytest

from clip_data import SourceConfig
from clip_finetune.cli import main
from clip_finetune.text_files import read_texts
from clip_finetune.texts import Texts

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def table(folder):
    """Texts that name a colour, in a table, and a config."""
    rng = np.random.default_rng(0)
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for n in range(90):
            words = [*rng.choice(["a", "photo", "of"], 3), ("red", "blue")[n % 2]]
            writer.writerow([" ".join(rng.permutation(words)), ("warm, really", "cold")[n % 2]])
    config = {
        "output_dir": "out",
        "model": "speaking",
        "train": {"format": "csv", "shards": "texts.csv"},
        "features": "mean",
        "probe": {"weight_decay": 0.0},
        "tune": {"epochs": 1, "batch_size": 16, "optimizer": {"learning_rate": 1e-3}},
    }
    (folder / "text.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("mode", ["probe", "attention"])
def test_texts_become_predictions(table, tmp_path, mode):
    out = tmp_path / "out"
    assert main(["text", str(table / "text.json"), "--mode", mode, "--to", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["classnames"] == ["cold", "warm, really"]
    assert results["metrics"].get("lp_acc1", 1) > 0.8
    assert [epoch["epoch"] for epoch in results.get("epochs", [])] == {"probe": [], "attention": [1]}[mode]
    (tmp_path / "new.txt").write_text("a blue photo\n\nof red a\n")
    arguments = ["predict", "--model", str(out), "--texts", str(tmp_path / "new.txt")]
    assert main([*arguments, "--to", str(tmp_path / "labels.csv"), "--batch-size", "4"]) == 0
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert mode != "probe" or [row["label"] for row in rows] == ["cold", "warm, really"]
    assert [row["text"] for row in rows] == ["a blue photo", "of red a"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=eyes", "eyes has none"),
        ("train.label_key=colour", "no label in colour of row 0"),
        ("train.caption_key=words", "no text in words"),
        ('classnames=["warm, really", "hot"]', "'cold' is none of the 2 classes (warm, really, hot)"),
        ("train.shards=gone.csv", "train: no shard at"),
        ('train={"format": "class_folder", "shards": "pictures"}', "texts are in tables or shards"),
        ('test={"format": "csv", "shards": "other.csv"}', "test: 'lukewarm' is none of the 2 classes"),
        ("model=model", "texts need a tokenizer, and the model names none"),
    ],
)
def test_what_cannot_be_is_one_message(table, tmp_path, capsys, monkeypatch, override, message):
    monkeypatch.chdir(table)
    (table / "other.csv").write_text("text,label\na red photo,lukewarm\n")
    output = f"output_dir={tmp_path / 'out'}"
    assert main(["text", str(table / "text.json"), "--set", output, "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_goes_on_from_a_cursor_and_takes_each_text_once_an_epoch(table):
    from clip_models import load_config

    source = SourceConfig(format="csv", shards=str(table / "texts.csv"))
    texts = Texts.of(read_texts(source), ("cold", "warm, really"), where="here")
    config = load_config(table / "speaking")
    with texts.read(config, batch_size=8, seed=3) as reader:
        batches = iter(reader)
        keys = [key for _ in range(45) for key in next(batches).keys]
    assert sorted(map(int, keys[:90])) == sorted(map(int, keys[90:180])) == list(range(90))
    assert keys[:90] != keys[90:180]
    with texts.read(config, batch_size=8, seed=3) as reader:
        batches = iter(reader)
        next(batches)
        cursor = reader.cursor()
    with texts.read(config, batch_size=8, seed=3) as reader:
        reader.seek(cursor)
        assert next(iter(reader)).keys == keys[8:16]
    with texts.read(config, batch_size=64) as reader:
        assert [row.mask.sum() for row in reader] == [64, 26]
