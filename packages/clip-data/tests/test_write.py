import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data import DataConfig, DataError, Filter, Pipeline, Record, SourceConfig, read_records, write, write_shards
from clip_data.tfrecord import write_examples


@pytest.fixture
def table(tmp_path, encode):
    """A table of ten pairs, of which 2 has no file, 3 a damaged one, 4 no caption, and 5 no path."""
    lines = ["image,caption,similarity"]
    for n in range(10):
        data = encode((n * 20, 0, 0), form=("PNG", "WEBP", "JPEG", "GIF")[n % 4])
        if n != 2:
            (tmp_path / f"{n}.jpg").write_bytes(data[:-12] if n == 3 else data)
        lines.append(f"{n}.jpg,{'' if n == 4 else f'pair {n}'},{n / 10}".replace("5.jpg", ""))
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    return SourceConfig(format="csv", shards=str(tmp_path / "pairs.csv"))


def read(written, form, **options):
    return list(read_records(SourceConfig(format=form, shards=written.shards, **options)))


@pytest.mark.parametrize("form", ["tfrecord", "webdataset", "parquet"])
def test_packs_a_table(table, tmp_path, form):
    written = write_shards(table, tmp_path / "out" / form, format=form, samples_per_shard=4)
    assert [os.path.basename(path)[:6] for path in written.shards] == ["00000.", "00001."]
    assert written.num_records == 6
    assert written.left_out == {"missing_image": 1, "bad_image": 1, "empty_caption": 1, "null_image": 1}
    assert any("2.jpg is no file" in str(fault) for fault in written.faults)
    originals = [record for record in read_records(table) if record.row not in (3, 4)]
    found = read(written, form)
    assert [r.key for r in found] == ["000000000", "000000001", "000000002", "000000003", "000010000", "000010001"]
    for record, original in zip(found, originals, strict=True):
        assert (record.image, record.caption) == (original.image, original.caption)
        assert str(record.metadata["similarity"]).strip("b'") == original.metadata["similarity"]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("form", ["tfrecord", "webdataset", "parquet"])
def test_is_deterministic_and_atomic(table, tmp_path, form, monkeypatch):
    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    for name in ("a", "b"):
        write_shards(table, tmp_path / name, format=form, samples_per_shard=4)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 4

    columns = write._columns
    monkeypatch.setattr(write, "_columns", lambda key, record: columns(key, record) if key != "000010000" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shards(table, tmp_path / "c", format=form, samples_per_shard=4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["a", "b"]


@pytest.mark.parametrize("through", ["tfrecord", "webdataset", "parquet"])
def test_metadata_survive(tmp_path, encode, through):
    fields = {
        "jpg": encode(),
        "png": encode((9, 9, 9)),
        "JPG": b"\xfe",
        "key": "old/key.1",
        "caption": "schön",
        "txt": "other",
        "label": 3,
        "uid": "ab" * 16,
        "width": 8,
        "score": 0.5,
        "none": None,
        "words": ["a", "b"],
        "embedding": b"\xff\x00\x01",
        "clip_emb": b"\xff",
        "Clip_emb": b"\xff",
    }
    write_examples(tmp_path / "in.tfrecord", [fields, {"jpg": encode(), "label": 4, "width": "wide"}])
    written = write_shards(
        SourceConfig(format="tfrecord", shards=str(tmp_path / "in.tfrecord")), tmp_path / "out", format=through
    )
    first, second = read(written, through)
    assert (first.image, first.caption, first.label) == (encode(), "schön", 3)
    text = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
    assert text(first.metadata["original_key"]) == "old/key.1"
    assert text(first.metadata["uid"]) == "ab" * 16
    assert str(text(first.metadata["width"])) == "8"
    assert first.metadata["score"] == 0.5
    assert [text(word) for word in first.metadata["words"]] == ["a", "b"]
    assert first.metadata["embedding"] == b"\xff\x00\x01"
    assert (
        first.metadata["clip_emb"] == first.metadata["clip_emb_" if through == "webdataset" else "Clip_emb"] == b"\xff"
    )
    assert first.metadata["original_jpg" if through == "webdataset" else "original_JPG"] == b"\xfe"
    assert first.metadata["original_png"] == encode((9, 9, 9))
    assert text(first.metadata["original_txt"]) == "other"
    assert (second.caption, second.label, text(second.metadata["width"])) == ("", 4, "wide")


@pytest.mark.parametrize("through", ["tfrecord", "webdataset", "parquet"])
def test_several_captions_and_the_names_of_classes_survive(tmp_path, encode, through):
    rows = {"png": [encode()] * 3, "caption": [["one", None, "two"], ["three"], None], "label": ["tabby", "dog", "3"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    source = SourceConfig(format="parquet", shards=str(tmp_path / "a.parquet"))
    written = write_shards(source, tmp_path / "out", format=through)
    assert {record.caption for record in read(written, through, caption_key="caption")} == {"one", "three", ""}
    again = SourceConfig(format=through, shards=written.shards)
    options = {"image_size": None, "tokenizer": None, "text_length": 1, "seed": 1}
    with Pipeline(DataConfig(sources=(again,), **options), global_batch_size=30) as pipeline:
        batch = next(pipeline)
    assert {*zip(batch.key, batch.caption, strict=True)} == {
        ("000000000", "one"),
        ("000000000", "two"),
        ("000000001", "three"),
        ("000000002", ""),
    }
    labels = [record.metadata["label"] for record in read(written, through)]
    assert [label.decode() if isinstance(label, bytes) else str(label) for label in labels] == ["tabby", "dog", "3"]
    assert [record.label for record in read(written, through)] == [None, None, 3]


def test_into_a_folder_that_is_there(table, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("here", "broken"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder, place in ((".", "here"), (tmp_path / "link", "real")):
        written = write_shards(table, folder, format="tfrecord")
        assert sorted(path.name for path in (tmp_path / place).iterdir()) == ["00000.tfrecord", "00000_stats.json"]
        assert len(read(written, "tfrecord")) == 6
    assert (tmp_path / "link").is_symlink()
    monkeypatch.setattr(write, "_columns", lambda key, record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shards(table, tmp_path / "broken", format="tfrecord")
    assert not list((tmp_path / "broken").iterdir())


def test_options(table, tmp_path):
    some = SourceConfig(format="csv", shards=table.shards, filters=(Filter(column="similarity", min=0.4),))
    options = {"format": "tfrecord", "verify": False, "keep_uncaptioned": True}
    written = write_shards(some, tmp_path / "a", **options)
    assert (written.num_records, written.left_out) == (5, {"missing_image": 1, "filtered": 3, "null_image": 1})
    seen = []
    classes = tmp_path / "classes" / "cat"
    classes.mkdir(parents=True)
    for n in range(150):
        os.link(tmp_path / "0.jpg", classes / f"{n}.png")
    source = SourceConfig(format="class_folder", shards=str(classes.parent))
    written = write_shards(source, tmp_path / "b", format="webdataset", progress=seen.append)
    assert (written.num_records, seen) == (150, [100])
    assert read(written, "webdataset")[0].label == 0


def test_refuses(table, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for folder, options, error, message in (
        ("full", {}, FileExistsError, "holds something already"),
        ("new", {"format": "zip"}, ValueError, "tfrecord, webdataset, parquet, not 'zip'"),
        ("new", {"samples_per_shard": 0}, ValueError, "at least 1, not 0"),
    ):
        with pytest.raises(error, match=message):
            write_shards(table, tmp_path / folder, **{"format": "tfrecord", **options})
    with pytest.raises(ValueError, match="local folders, gs:// and s3://, not ftp://host/x"):
        write_shards(table, "ftp://host/x", format="tfrecord")
    nothing = SourceConfig(format="csv", shards=table.shards, caption_key="nocaption")
    with pytest.raises(DataError, match=r"8 empty_caption.*the caption is ''; the fields are caption, similarity"):
        write_shards(nothing, tmp_path / "new", format="tfrecord")
    assert not (tmp_path / "new").exists()


def test_records_are_plain(encode):
    record = Record(key="", image=encode(), caption="\ud800", label=None, metadata={"n": 1 << 70}, shard="s", row=0)
    assert write._columns("k", record) == {"key": "k", "caption": "?", "n": str(1 << 70)}
