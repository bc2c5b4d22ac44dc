import csv
import itertools
import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_finetune.cli import main
from clip_finetune.embedder import sentence_metrics
from clip_finetune.sentence_pairs import SentencePair, SentencePairs
from clip_models import encode_text, load_pretrained

pytestmark = pytest.mark.usefixtures("one_device")

STARTS = ("a", "photo", "of", "a photo", "photo of", "of a", "a of", "photo a")


@pytest.fixture(scope="module")
def table(folder):
    """Sentences that mean red or blue, one pair a row, and others with scores."""
    colours = [" ".join(way) for num in (1, 2) for way in itertools.product(("red", "blue"), repeat=num)]
    with (folder / "sentences.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "positive"])
        for colour, (one, two) in itertools.product(colours, itertools.permutations(STARTS, 2)):
            writer.writerow([f"{one} {colour}", f"{colour} {two}"])
    with (folder / "scored.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "positive", "score"])
        for start, (one, two) in itertools.product(STARTS, itertools.product(colours, repeat=2)):
            writer.writerow([f"{start} {one}", f"{two} {start}", 5 if one == two else 0])
    config = {
        "task": "embedding",
        "output_dir": "out",
        "model": "speaking",
        "train": {"format": "csv", "shards": "sentences.csv"},
        "scored": {"format": "csv", "shards": "scored.csv"},
        "cache": None,
        "tune": {"epochs": 2, "batch_size": 32, "optimizer": {"learning_rate": 1e-2}},
    }
    (folder / "sentences.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("mode", "features"), [("wise-ft", "embedding"), ("probe", "pooled+mean")])
def test_sentences_of_one_meaning_come_near(table, tmp_path, mode, features):
    out = tmp_path / "out"
    arguments = ["text", str(table / "sentences.json"), "--mode", mode, "--to", str(out)]
    assert main([*arguments, "--set", f"features={features}"]) == 0
    results = json.loads((out / "results.json").read_text())
    before, after = results["before"], results["after"]
    assert after["spearman"] > before["spearman"]
    assert after["mean_rank"] <= before["mean_rank"]
    assert len(results["epochs"]) == 2
    (tmp_path / "new.txt").write_text("a photo of red\nred of\nblue of a\n")
    predict = ["predict", "--model", str(out), "--texts", str(tmp_path / "new.txt"), "--to"]
    assert main([*predict, str(tmp_path / "new.parquet")]) == 0
    rows = pq.read_table(tmp_path / "new.parquet").to_pydict()
    vectors = np.array(rows["embedding"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    model, tuned = load_pretrained(out / "model")
    kept = load_pretrained(table / "speaking")[1]
    jax.tree.map(np.testing.assert_array_equal, tuned["vision"], kept["vision"])
    if mode == "probe":
        jax.tree.map(np.testing.assert_array_equal, tuned["text"], kept["text"])
    if features == "embedding":
        from clip_finetune.texts import tokenizer_of

        ids, mask = tokenizer_of(model)(rows["text"])
        mask = mask if model.preprocess.mask_padding else None
        np.testing.assert_allclose(encode_text(model, tuned, ids, mask), vectors, atol=1e-5)
        assert main([*predict, str(tmp_path / "new.csv")]) == 2


def test_retrieval_takes_every_right_answer_and_sts_ranks_ties_by_their_mean():
    def of(*pairs):
        return SentencePairs(tuple(SentencePair(*pair, "s", n) for n, pair in enumerate(pairs)), "here")

    pairs = of(("a", "x", None), ("a", "y", None), ("b", "z", None))
    assert pairs.sentences()[0] == ["a", "x", "y", "b", "z"]
    vectors = np.array([[1, 0], [0.6, 0.8], [1, 0], [0, 1], [0.8, 0.6]], np.float32)
    metrics = sentence_metrics(vectors, pairs)
    assert metrics["recall@1"] == pytest.approx(2 / 3)
    assert metrics["mean_rank"] == pytest.approx((1 + 1 + 2) / 3)
    scored = of(("a", "x", 1.0), ("a", "y", 1.0), ("b", "z", 0.0), ("b", "x", 2.0))
    metrics = sentence_metrics(vectors, scored)
    # Cosines 0.6, 1, 0.6, 0.8 have ranks 1.5, 4, 1.5, 3 and the scores 2.5, 2.5, 1, 4.
    ranks = np.corrcoef([1.5, 4, 1.5, 3], [2.5, 2.5, 1, 4])[0, 1]
    assert metrics["spearman"] == pytest.approx(ranks)
    assert metrics["pearson"] == pytest.approx(np.corrcoef([0.6, 1, 0.6, 0.8], [1, 1, 0, 2])[0, 1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("positive_key=other", "train: no other in row 0"),
        ("score_key=alike", "scored: no alike in row 0"),
        ("model=eyes", "eyes has none"),
        ("model=model", "texts need a tokenizer"),
        ("dim=4096", "dim: at most the 32 numbers that features 'embedding' have; got 4096"),
        ("scale=0", "scale is above 0"),
        ("mode=attention", "mode: "),
    ],
)
def test_what_cannot_be_is_one_message(table, tmp_path, capsys, monkeypatch, override, message):
    monkeypatch.chdir(table)
    output = f"output_dir={tmp_path / 'out'}"
    assert main(["text", str(table / "sentences.json"), "--set", output, "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
