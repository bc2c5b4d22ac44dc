import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data import DataConfig, Pipeline, SourceConfig, read_records, sources
from clip_data.records import IndexedShard, scan


@pytest.fixture
def write(tmp_path):
    """Writes columns as one shard, of row groups of ten rows."""

    def write(columns, name="a.parquet", row_group_size=10):
        pq.write_table(pa.table(columns), tmp_path / name, row_group_size=row_group_size)
        return str(tmp_path / name)

    return write


def records(path, **options):
    return list(read_records(SourceConfig(format="parquet", shards=path, **options)))


def img2dataset(encode, count, failed=()):
    rows = list(range(count))
    return {
        "similarity": pa.array([n / 100 for n in rows], pa.float64()),
        "caption": pa.array([None if n == 1 else f"view {n}" for n in rows], pa.string()),
        "key": [f"{n:09d}" for n in rows],
        "status": ["failed_to_download" if n in failed else "success" for n in rows],
        "width": pa.array([None if n in failed else 8 for n in rows], pa.int32()),
        "webp": pa.array([None if n in failed else encode((n, 0, 0), form="WEBP") for n in rows], pa.binary()),
    }


def test_img2dataset_shard(write, encode, caplog):
    path = write(img2dataset(encode, 25, failed=(3, 14)))
    found = records(path)
    assert [record.row for record in found] == [n for n in range(25) if n not in (3, 14)]
    assert (found[0].key, found[0].caption, found[1].caption) == ("000000000", "view 0", "")
    assert (found[0].metadata["similarity"], found[0].metadata["width"], found[0].offset) == (0.0, 8, None)
    assert found[0].image == encode((0, 0, 0), form="WEBP")
    assert not caplog.records


def test_null_images_are_counted_apart(write, encode):
    source = SourceConfig(format="parquet", shards=write(img2dataset(encode, 40, failed=range(0, 40, 2))))
    config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=8, max_bad_fraction=0.0)
    with Pipeline(config, global_batch_size=8) as pipeline:
        batches = list(itertools.islice(pipeline, 10))
        assert all(batch.mask.all() for batch in batches)
        assert (pipeline.faults, pipeline.skipped.keys()) == ({}, {"null_image"})
    config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=8, shuffle=False, num_epochs=1)
    with Pipeline(config, global_batch_size=8) as pipeline:
        assert np.concatenate([batch.mask for batch in pipeline]).tolist() == [False, True] * 20
        assert pipeline.skipped == {"null_image": 20}


def test_image_column_by_name_type_or_path(write, encode, tmp_path):
    picture = encode()
    struct = [{"bytes": picture, "path": "a.png"}]
    for columns in (
        {"embedding": [b"x"], "image": [picture]},
        {"pixels": [picture], "url": ["u"]},
        {"image": struct, "url": ["u"]},
        {"thing": struct},
    ):
        assert records(write(columns))[0].image == picture
    assert records(write({"a": [picture], "b": [b"b"]}), image_key="b")[0].image == b"b"
    (tmp_path / "x.png").write_bytes(picture)
    (record,) = records(write({"image_path": ["x.png"], "text": ["t"]}))
    assert (record.image, record.caption, record.key) == (picture, "t", "x.png")


def test_shards_that_cannot_be_read_are_named_and_skipped(write, encode, tmp_path, caplog):
    write(img2dataset(encode, 25), "0.parquet")
    whole = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(whole[:-20])
    (tmp_path / "2.parquet").write_bytes(b"")
    (tmp_path / "3.parquet").write_bytes(b"<html>")
    write({"url": ["u"]}, "4.parquet")
    assert len(records(str(tmp_path / "*.parquet"))) == 25
    reasons = ("none", "bad_shard", "empty_shard", "bad_shard", "bad_shard")
    named = {f"{number}.parquet": reason for number, reason in enumerate(reasons)}
    for record in caplog.records:
        (name,) = [name for name in named if name in record.message]
        assert named.pop(name) in record.message
    assert named == {"0.parquet": "none"}
    assert "the columns are url (string)" in caplog.text
    source = SourceConfig(format="parquet", shards=str(tmp_path / "3.parquet"))
    config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=8)
    with pytest.raises(ValueError, match=r"no record .*3\.parquet: bad_shard"):
        Pipeline(config, global_batch_size=1)


def test_a_damaged_row_group_loses_its_rows(tmp_path, encode, caplog):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"jpg": [encode((n, 0, 0)) * 9 for n in range(30)]}), path, row_group_size=10)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(data)
    assert [record.row for record in records(path, image_key="auto")] == [*range(10), *range(20, 30)]
    assert "row 10: bad_record: row group 1 cannot be read" in caplog.text


def test_a_store_that_fails_is_no_damage(write, encode, monkeypatch):
    path = write(img2dataset(encode, 5))
    shard = sources.open_shard(path)

    def fail(*_):
        raise OSError("the store stalls")

    monkeypatch.setattr(type(shard), "read_at", fail)
    with pytest.raises(OSError, match="the store stalls"):
        records(path)


def test_order_and_resume(write, encode):
    for number in range(3):
        columns = img2dataset(encode, 30)
        columns["key"] = [f"{number}-{n}" for n in range(30)]
        path = write(columns, f"{number}.parquet")
    source = SourceConfig(format="parquet", shards=path.replace("2.parquet", "*.parquet"))

    def run(threads, skip=0):
        config = DataConfig(
            sources=(source,), image_size=8, tokenizer=None, text_length=8, block_shards=2, num_threads=threads
        )
        with Pipeline(config, global_batch_size=10) as pipeline:
            pipeline.seek({**pipeline.cursor(), "position": 10 * skip})
            return [batch.key for batch in itertools.islice(pipeline, 9 - skip)]

    expected = run(1)
    assert len({key for keys in expected for key in keys}) == 90
    assert run(8) == expected
    assert run(2, skip=5) == expected[5:]


def test_columns_of_every_type(write, encode):
    columns = {
        "png": pa.array([encode()]),
        "nanoseconds": pa.array([1_600_000_000_123_456_789], pa.timestamp("ns")),
        "zoned": pa.array([1_600_000_000], pa.timestamp("s", tz="Mars/Phobos")),
        "duration": pa.array([5], pa.duration("us")),
        "date": pa.array([3], pa.date32()),
        "nested": pa.array([{"a": [1, None]}]),
        "words": pa.array(["a"]).dictionary_encode(),
        "half": pa.array([0.5], pa.float16()),
        "null": pa.nulls(1),
    }
    (record,) = records(write(columns))
    assert record.metadata["nanoseconds"] == "2020-09-13 12:26:40.123456789"
    assert record.metadata["zoned"] == "2020-09-13 12:26:40.000"
    assert (record.metadata["duration"], record.metadata["date"]) == ("5", "1970-01-04")
    assert (record.metadata["nested"], record.metadata["words"]) == ({"a": [1, None]}, "a")
    assert (record.metadata["half"], record.metadata["null"]) == (0.5, None)


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_columns_of_images_of_every_type(write, encode, kind):
    texts = pa.array(["a"], pa.string_view()) if kind == pa.binary_view() else ["a"]
    pictures = pa.array([encode()]).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array([encode()], kind)
    (record,) = records(write({"image": pictures, "caption": texts}))
    assert (record.image, record.caption) == (encode(), "a")


def test_a_text_that_is_not_utf8_is_found_in_lists(write, encode):
    texts = pa.ListArray.from_arrays([0, 2, 3], pa.array([b"ok", b"", b"caf\xe9"], pa.binary()).view(pa.string()))
    first, second = records(write({"png": [encode()] * 2, "caption": texts}))
    assert (first.caption, first.caption_is_utf8) == ("ok", True)
    assert (second.caption, second.caption_is_utf8) == ("caf\ufffd", False)


def test_texts_alone_may_be_many_in_few_bytes(tmp_path):
    pq.write_table(pa.table({"caption": ["dog"] * 200_000}), tmp_path / "a.parquet")
    source = SourceConfig(format="parquet", shards=str(tmp_path / "a.parquet"))
    config = DataConfig(sources=(source,), image_size=None, tokenizer=None, text_length=4)
    with Pipeline(config, global_batch_size=4) as pipeline:
        assert (pipeline.num_samples, next(pipeline).caption) == (200_000, ["dog"] * 4)


def test_row_groups_are_held_while_their_block_lasts(write, encode):
    for number in range(12):
        path = write(img2dataset(encode, 30), f"{number:02d}.parquet", row_group_size=5)
    source = SourceConfig(format="parquet", shards=path.replace("11.parquet", "*.parquet"))
    options = {"tokenizer": None, "text_length": 1, "block_shards": 4, "num_streams": 2, "prefetch": 1}
    with Pipeline(DataConfig(sources=(source,), image_size=8, **options), global_batch_size=4) as pipeline:
        held = []
        for _ in itertools.islice(pipeline, 180):
            slots = [*pipeline._executor._preparer._open.values()]
            held.append(sum(len(slot.shard._reader._groups) for slot in slots if slot.shard))
    # A block has 24, another begins in the batch in which it ends, and a stream may begin and end within a shard.
    assert max(held) <= 24 + 10
    assert sum(held) / len(held) < 24


def test_one_row_group_is_held_where_rows_are_read_in_order(write, encode):
    shard = IndexedShard(SourceConfig(format="parquet", shards="x"), write(img2dataset(encode, 40)), in_order=True)
    for n, _ in enumerate(scan(shard)):
        assert list(shard._reader._groups) == [n // 10]


def test_captions_that_are_drawn(write, encode):
    count = 400
    columns = {
        "png": [encode()] * count,
        "alt": ["alt"] * count,
        "synthetic": ["made"] * count,
        "blank": [" "] * count,
        "several": [["one", None, "", "two"]] * count,
    }
    path = write(columns)

    def captions(key, seed=0, skip=0):
        source = SourceConfig(format="parquet", shards=path, caption_key=key)
        config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=1, seed=seed)
        with Pipeline(config, global_batch_size=50) as pipeline:
            pipeline.seek({**pipeline.cursor(), "position": 50 * skip})
            return [caption for batch in itertools.islice(pipeline, 16 - skip) for caption in batch.caption]

    weighted = captions({"alt": 3.0, "synthetic": 1.0, "blank": 5.0, "missing": 1.0})
    assert set(weighted) == {"alt", "made"}
    assert 0.68 < weighted.count("alt") / 800 < 0.82
    assert weighted[:400] != weighted[400:]  # the next epoch draws again
    assert captions({"alt": 3.0, "synthetic": 1.0, "blank": 5.0, "missing": 1.0}, skip=9) == weighted[450:]
    assert captions(("alt", "synthetic"), seed=1) != captions(("alt", "synthetic"), seed=2)
    several = captions("several")
    assert set(several) == {"one", "two"}
    assert 0.4 < several.count("one") / 800 < 0.6
    assert set(captions(("blank", "missing"))) == {""}
