import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clip_data import Record, SourceConfig, Tokenizer
from clip_data.webdataset import write_samples
from clip_models import ClipConfig, PreprocessConfig, TextConfig, VisionConfig, init
from clip_sharding import MeshConfig, make_mesh
from clip_train.evaluate import (
    AllCaptions,
    AllLabels,
    Encoders,
    EvaluationConfig,
    Prompts,
    class_embeds,
    evaluate,
    read_prompts,
    standard_names,
    standard_prompts,
)
from clip_train.inputs import data_config
from clip_train.metrics import calibration_error, classification_metrics, mean_average_precision
from clip_train.ranking import ranking_metrics
from clip_train.similarity import Similarity

RECALLS = ("recall@1", "recall@5", "recall@10")


def test_accuracies_and_recalls_are_clip_benchmarks_to_the_last_digit_with_ties():
    """Expected: its own functions (1.6.2, PyTorch 2.13) on the same arrays, which are full of equal scores."""
    rng = np.random.default_rng(0)
    expected = [
        {"acc1": 0.83, "mean_per_class_recall": 0.8258500758500759},
        {"acc1": 0.5533333333333333, "acc5": 0.8666666666666667, "mean_per_class_recall": 0.5523732105253845},
        {"acc1": 0.48, "acc5": 0.48, "mean_per_class_recall": 0.47549019607843135},
    ]
    for (num, num_classes), metrics in zip(((300, 3), (300, 12), (200, 400)), expected, strict=True):
        logits = rng.integers(0, 4, (num, num_classes)).astype(np.float32)
        labels = rng.integers(0, num_classes, num)
        logits[np.arange(num), labels] += 2
        assert classification_metrics(logits, labels) == metrics
    # Its average is of single precision, and it has no order of equal scores: none are here.
    scores, targets = rng.normal(size=(200, 6)).astype(np.float32), (rng.random((200, 6)) < 0.3).astype(np.int64)
    assert mean_average_precision(scores, targets) == pytest.approx(0.3311801254749298, abs=1e-7)

    images = rng.integers(-1, 2, (90, 6)).astype(np.float32)
    own = np.repeat(np.arange(90), rng.integers(1, 5, 90))
    texts = images[own] + rng.integers(-1, 2, (len(own), 6)).astype(np.float32)
    to_images = ranking_metrics(texts, images, lambda rows: own[rows, None] == np.arange(90), (1, 5, 10))
    to_texts = ranking_metrics(images, texts, lambda rows: np.arange(90)[rows, None] == own, (1, 5, 10))
    assert [to_images[name] for name in RECALLS] == [0.21052631735801697, 0.5980861186981201, 0.7703348994255066]
    assert [to_texts[name] for name in RECALLS] == [0.2777777910232544, 0.5777778029441833, 0.6888889074325562]


def test_ranks_in_chunks_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(1)
    queries, items, own = rng.normal(size=(50, 8)), rng.normal(size=(70, 8)), rng.integers(0, 70, 50)
    whole = ranking_metrics(queries, items, lambda rows: own[rows, None] == np.arange(70), (5,))
    monkeypatch.setattr("clip_train.ranking._CHUNK_BYTES", 4 * 70 * 7)
    assert ranking_metrics(queries, items, lambda rows: own[rows, None] == np.arange(70), (5,)) == whole
    ranks = 1 + ((queries @ items.T) > (queries * items[own]).sum(axis=1, keepdims=True) + 1e-9).sum(axis=1)
    assert whole["mean_rank"] == ranks.mean()
    assert whole["median_rank"] == np.median(ranks)


def test_equal_items_score_equally_wherever_they_stand():
    rng = np.random.default_rng(2)
    items, queries = rng.normal(size=(301, 65)).astype(np.float32), rng.normal(size=(33, 65)).astype(np.float32)
    twice = np.concatenate([items, items[::-1]])
    scores = Similarity(twice)(queries)
    np.testing.assert_array_equal(scores[:, :301], scores[:, :300:-1])
    np.testing.assert_allclose(scores, queries @ twice.T, atol=1e-5)
    own, places = np.arange(301), np.arange(602)  # each query's item is there twice, and once it is another's
    ranks = ranking_metrics(items, np.concatenate([items, items]), lambda rows: own[rows, None] == places, (1,))
    assert ranks["mean_rank"] == ranks["median_rank"] == 1.5


def test_what_is_not_finite_is_no_score():
    nan = np.full((3, 6), np.nan, np.float32)
    one = np.eye(6, dtype=np.float32)[:3]
    own = np.arange(3)
    for queries, items in ((nan, one), (one, nan)):
        with pytest.raises(ValueError, match="embeddings are finite numbers; 3 of 3 are not"):
            ranking_metrics(queries, items, lambda rows: own[rows, None] == own, (1,))
    one[1, 2] = np.inf
    for metric in (classification_metrics, calibration_error):
        with pytest.raises(ValueError, match=r"1 of 3 are not \(the first is number 1"):
            metric(one, own)
    with pytest.raises(ValueError, match="finite"):
        mean_average_precision(one, np.eye(6)[:3])


def test_standard_prompts_are_whole():
    assert {"imagenet1k", "cifar10", "cifar100", "food101", "cars", "dtd", "pets", "flowers"} <= set(standard_names())
    for name in standard_names():
        prompts = standard_prompts(name)
        assert all(prompts.of(classname) for classname in prompts.classnames)
    imagenet = standard_prompts("imagenet1k")
    assert (len(imagenet.classnames), len(imagenet.templates)) == (1000, 80)
    assert standard_prompts("imagenetv2") == imagenet
    numbers = {"imagenet-a": 200, "imagenet-r": 200, "objectnet": 113, "sun397": 397, "fgvc_aircraft": 100}
    assert {name: len(standard_prompts(name).classnames) for name in numbers} == numbers
    assert standard_prompts("imagenet-r").classnames[0] == "goldfish"
    assert standard_prompts("imagenet-r").templates == imagenet.templates
    with pytest.raises(ValueError, match=r"did you mean .*imagenet1k"):
        standard_prompts("imagenet")


def test_prompts_come_from_files_names_and_classes(tmp_path):
    source = SourceConfig(format="webdataset", shards=str(tmp_path / "test" / "*.tar"))
    config = {"name": "x", "task": "zeroshot_classification", "data": source}
    assert read_prompts(EvaluationConfig(**config, classnames="stl10")).of("cat")[1] == "a photo of the cat."
    own = {"cat": ["it purrs", "a {c} naps"], "dog": ["it barks"]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    prompts = read_prompts(EvaluationConfig(**config, classnames=("cat", "dog"), templates=str(tmp_path / "own.json")))
    assert [prompts.of(name) for name in prompts.classnames] == [["it purrs", "a cat naps"], ["it barks"]]
    with pytest.raises(ValueError, match=r"none for \['dog'\]"):
        Prompts(("cat", "dog"), {"cat": ("it purrs",)})
    with pytest.raises(ValueError, match=r"no other brace; got 'a \{c\} \{d\}'"):
        Prompts(("cat",), ("a {c} {d}",))
    with pytest.raises(ValueError, match=r"no classnames found at .*imagenet1k"):
        read_prompts(EvaluationConfig(**config))


def test_records_give_all_their_captions_and_labels():
    def record(**fields):
        return Record(key="k", image=b"", caption="drawn", label=None, metadata=fields, shard="s", row=0)

    def captions(made):
        return None if made is None else json.loads(made.caption)

    tars, tables = (SourceConfig(format=name, shards="x") for name in ("webdataset", "parquet"))
    assert captions(AllCaptions(tars)(record(txt=b"one\n\n two \n"))) == ["one", "two"]
    assert captions(AllCaptions(tables)(record(caption=["a\nb", "", "c"]))) == ["a\nb", "c"]
    some = SourceConfig(format="parquet", shards="x", caption_key=("short", "long"))
    assert captions(AllCaptions(some)(record(short="s", long=["l", "m"]))) == ["s", "l", "m"]
    np.save(data := io.BytesIO(), np.array([0, 1, 1]))
    assert captions(AllLabels()(record(npy=data.getvalue()))) == [1, 2]
    assert captions(AllLabels("tags")(record(tags=[4, 0]))) == [4, 0]
    with pytest.raises(ValueError, match="sample k of s has none"):
        AllLabels()(record(txt=b"x"))


MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2),
    text=TextConfig(vocab_size=16, max_length=6, width=16, num_layers=1, num_heads=2),
    preprocess=PreprocessConfig(tokenizer="words"),
)


@pytest.fixture(scope="module")
def benchmark_set(squares, tmp_path_factory):
    """A data set as CLIP_benchmark lays one out: `.cls`, `.npy` and several captions in `.txt`; and a model."""
    folder = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    for split, num in (("train", 24), ("test", 10)):
        (folder / split).mkdir()
        samples = []
        for number in range(num):
            label = number % 2
            pixels = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2 * label] += 150
            Image.fromarray(pixels).save(webp := io.BytesIO(), "WEBP", lossless=True)
            np.save(npy := io.BytesIO(), np.array([label == 0, label == 1, True]).astype(int))
            captions = f"a {('red', 'blue')[label]} square\nthe one\nsquare {number}"[: None if number % 3 else 12]
            fields = {"cls": str(label).encode(), "npy": npy.getvalue(), "txt": captions.encode()}
            samples.append((f"s{number:04d}", {"webp": webp.getvalue(), **fields}))
        write_samples(folder / split / "0.tar", samples)
        (folder / split / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("red\nblue\nsquare\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\nthe {c}\n")
    encoders = Encoders(MODEL, make_mesh(MeshConfig(), jax.devices()[:1]))
    tokenizer = Tokenizer(str(squares / "words"), text_length=6)
    data = data_config(MODEL, (SourceConfig(format="webdataset", shards="x"),), tokenizer=None)
    params = init(MODEL, jax.random.key(0))

    def run(**options):
        def source(split):
            return SourceConfig(format="webdataset", shards=str(folder / split / "*.tar"))

        splits = {name: source("train") for name in options.pop("learns_from", ())}
        config = EvaluationConfig(name="x", data=source("test"), batch_size=8, **splits, **options)
        return evaluate(config, encoders, params, data, tokenizer)

    return folder, encoders, params, tokenizer, run


def test_classes_are_means_of_their_own_prompts(benchmark_set):
    _, encoders, params, tokenizer, _ = benchmark_set
    prompts = Prompts(("red", "blue"), {"red": ("a red square", "the red one"), "blue": ("the blue",)})
    embeds = encoders.texts(params, tokenizer, ["a red square", "the red one", "the blue"], batch_size=8)
    mean = embeds[:2].mean(axis=0)
    expected = np.stack([mean / np.linalg.norm(mean), embeds[2]])
    np.testing.assert_allclose(class_embeds(encoders, params, prompts, tokenizer), expected, atol=1e-6)


def test_clip_benchmarks_layout_is_read_in_all_its_kinds(benchmark_set):
    folder, *_, run = benchmark_set
    result = run(task="zeroshot_classification")
    assert result.num_samples == 10
    assert set(result.metrics) == {"acc1", "mean_per_class_recall"}
    written = result.to_json(model="m", pretrained="p")
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= written.keys()

    several = run(task="zeroshot_retrieval")
    assert several.num_samples == 10
    assert set(several.metrics) == {
        f"{way}_retrieval_{name}" for way in ("image", "text") for name in (*RECALLS, "mean_rank", "median_rank")
    }
    assert several.examples[1].caption == "a blue square"
    # Ten pictures: a text is among the ten best of them whatever the model, and a picture's text among all texts' 26.
    assert several.metrics["image_retrieval_recall@10"] == 1.0

    probe = run(task="linear_probe", learns_from=("train", "validation"), multi_label=False)
    assert probe.metrics["lp_acc1"] == 1.0
    assert probe.settings["epochs"] == 10

    (folder / "dataset_type.txt").write_text("multilabel\n")
    assert set(run(task="zeroshot_classification").metrics) == {"mean_average_precision"}
    many = run(task="linear_probe", learns_from=("train",))
    assert many.metrics["lp_mean_average_precision"] > 0.99
