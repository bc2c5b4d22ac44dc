import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clip_data import Pipeline, SourceConfig
from clip_models import ClipConfig, PreprocessConfig, TextConfig, VisionConfig, init, save_pretrained
from clip_train.cli import main
from clip_train.config_file import ConfigError
from clip_train.embed import embed, read_shards
from clip_train.open_model import open_model
from clip_train.search import nearest

MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2),
    text=TextConfig(vocab_size=16, max_length=6, width=16, num_layers=1, num_heads=2),
    preprocess=PreprocessConfig(text_length=6),
)


@pytest.fixture(scope="module")
def model(squares, tmp_path_factory):
    """A random model's directory, and what its towers make of the training pictures, in one piece."""
    directory = tmp_path_factory.mktemp("model")
    config = dataclasses.replace(
        MODEL, preprocess=dataclasses.replace(MODEL.preprocess, tokenizer=str(squares / "words"))
    )
    save_pretrained(directory, config, init(config, jax.random.key(0)))
    opened = open_model(str(directory))
    source = SourceConfig(format="tfrecord", shards=str(squares / "train-*.tfrecord"))
    with Pipeline(opened.data(source, tokenizer=None, shuffle=False, num_epochs=1), global_batch_size=96) as pipeline:
        expected = opened.encoders.images(opened.params, next(pipeline))
    return directory, opened, source, expected


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_embeddings_are_the_models_in_the_order_of_the_data_whatever_stops_them(model, tmp_path, format):
    _, opened, source, expected = model
    options = {"format": format, "batch_size": 16, "shard_size": 32}
    assert list(itertools.islice(embed(opened, source, tmp_path, **options), 2)) == [32, 64]
    (tmp_path / "embeddings-00002.new").write_bytes(b"cut off while it was written")
    assert list(embed(opened, source, tmp_path, **options)) == [96]
    assert list(embed(opened, source, tmp_path, **options)) == []
    shards = list(read_shards(tmp_path))
    np.testing.assert_allclose(np.concatenate([embeds for embeds, _ in shards]), expected, atol=1e-6)
    rows = [row for _, rows in shards for row in rows]
    assert [row.key for row in rows] == [f"{n:05d}" for n in range(96)]
    assert [row.label for row in rows] == [n % 4 for n in range(96)]
    assert (rows[41].shard, rows[41].row, rows[41].caption) == (
        str(source.shards).replace("*", "1"),
        1,
        "the green one",
    )
    with pytest.raises(ConfigError, match="holds other embeddings"):
        next(embed(opened, source, tmp_path, **options | {"dtype": "float16"}))


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_captions_are_embedded_beside_the_pictures_or_without_them(model, squares, tmp_path, format):
    directory, opened, source, expected = model
    options = {"format": format, "batch_size": 16, "shard_size": 32}
    assert list(itertools.islice(embed(opened, source, tmp_path / "t", what="texts", **options), 1)) == [32]
    flags = ["--format", format, "--batch-size", "16", "--shard-size", "32", "--to", str(tmp_path / "t")]
    assert main(["embed", str(directory), "--data", str(source.shards), "--what", "texts", *flags]) == 0
    list(embed(opened, source, tmp_path / "b", what="both", **options))
    shards = list(read_shards(tmp_path / "t"))
    assert [len(rows) for _, rows in shards] == [32, 32, 32]
    captions = [row.caption for _, rows in shards for row in rows]
    texts = opened.encoders.texts(opened.params, opened.tokenizer(), captions, batch_size=16)
    np.testing.assert_allclose(np.concatenate([embeds for embeds, _ in shards]), texts, atol=1e-6)
    for side, embeds in (("images", expected), ("texts", texts)):
        found = np.concatenate([embeds for embeds, _ in read_shards(tmp_path / "b", side)])
        np.testing.assert_allclose(found, embeds, atol=1e-6)
    assert [row for _, rows in read_shards(tmp_path / "b") for row in rows] == [r for _, rows in shards for r in rows]
    assert nearest(tmp_path / "t", texts[:1], top=1)[0][0].row.caption == captions[0]
    with pytest.raises(ConfigError, match="holds other embeddings \\(what 'texts'\\)"):
        next(embed(opened, source, tmp_path / "t", **options))
    blind = dataclasses.replace(opened, config=dataclasses.replace(opened.config, vision=None))
    with pytest.raises(ConfigError, match="has no tower for images; --what both needs one"):
        next(embed(blind, source, tmp_path / "n", what="both"))


def test_search_is_exact_and_shows_what_it_found(model, squares, tmp_path, capsys, monkeypatch):
    directory, opened, _, expected = model
    to = tmp_path / "out"
    monkeypatch.chdir(directory.parent)
    flags = ["--data", str(squares / "train-*.tfrecord"), "--batch-size", "16", "--shard-size", "48"]
    assert main(["embed", directory.name, *flags, "--dtype", "float16", "--to", str(to)]) == 0
    monkeypatch.chdir(tmp_path)  # a path is that of where it was given
    assert "96 of width 16" in capsys.readouterr().out
    hits = nearest(to, expected[:3], top=7)
    assert [hits[i][0].row.key for i in range(3)] == [f"{i:05d}" for i in range(3)]
    scores = np.sort(expected[:3] @ expected.astype(np.float16).astype(np.float32).T, axis=1)[:, ::-1][:, :7]
    np.testing.assert_allclose([[hit.score for hit in row] for row in hits], scores, atol=1e-6)

    page = tmp_path / "page.html"
    assert main(["search", str(to), "a red square", "--top", "5", "--to", str(page)]) == 0
    assert page.read_text().count('src="data:image/jpeg;base64,') == 5
    Image.new("RGB", (30, 20), (230, 30, 30)).save(tmp_path / "red.png")
    assert main(["search", str(to), str(tmp_path / "red.png"), "--top", "5", "--to", str(page)]) == 0
    assert page.read_text().count('src="data:image/jpeg;base64,') == 6
    capsys.readouterr()
    save_pretrained(directory, opened.config, init(opened.config, jax.random.key(1)))
    for arguments in (["search", str(to), "a red square"], ["embed", str(directory), *flags, "--to", str(to)]):
        assert main(arguments) == 2
        assert f"holds embeddings of other weights than those of {directory}" in capsys.readouterr().err
    save_pretrained(directory, opened.config, opened.params)
    assert main(["search", str(tmp_path), "a red square"]) == 2
    assert "holds no embeddings; make them: clip-train embed" in capsys.readouterr().err


def test_a_table_of_captions_alone_is_searched(model, tmp_path, capsys):
    directory, *_ = model
    (tmp_path / "a.csv").write_text('caption\nthe red one\n" "\na blue square\n')
    to, page = str(tmp_path / "out"), tmp_path / "page.html"
    assert main(["embed", str(directory), "--data", str(tmp_path / "a.csv"), "--what", "texts", "--to", to]) == 0
    assert "2 of width 16" in capsys.readouterr().out
    assert main(["search", to, "a blue square", "--top", "1", "--to", str(page)]) == 0
    assert "a blue square" in capsys.readouterr().out
    assert "no picture is there" in page.read_text()


def test_any_model_is_evaluated_from_flags_or_a_config(model, squares, tmp_path, capsys):
    directory, *_ = model
    data = str(squares / "test-*.tfrecord")
    assert main(["eval", str(directory), "--data", data, "--to", str(tmp_path / "a.json")]) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["task"] == "zeroshot_classification"
    assert written["num_samples"] == 21
    source = {"format": "tfrecord", "shards": data}
    evaluation = [{"name": "test-*.tfrecord", "task": "zeroshot_classification", "data": source}]
    (tmp_path / "c.json").write_text(json.dumps({"model": str(directory), "evaluation": evaluation}))
    assert main(["eval", str(tmp_path / "c.json"), "--to", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text()) == written
    capsys.readouterr()
    assert main(["eval", str(directory)]) == 2
    assert "give --data SHARDS" in capsys.readouterr().err
    assert main(["eval", str(directory), "--data", data, "--data", data]) == 2
    assert "each evaluation has a name of its own" in capsys.readouterr().err
    assert main(["eval", str(directory), "--data", data, "--classnames", "imagenet"]) == 2
    assert "no classnames found at imagenet" in capsys.readouterr().err
