"""What becomes of bad data, fault by fault, through the whole pipeline; stores that fail are in their own test."""

import json
import os
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data import DataConfig, DataError, Filter, Pipeline, SourceConfig, read_records
from clip_data.tfrecord import write_examples
from clip_data.webdataset import write_samples

FORMS = ("tfrecord", "webdataset", "parquet")
NUM = 20


def write_tar(path, examples):
    def members(example):
        metadata = {name: value for name, value in example.items() if not isinstance(value, bytes)}
        blobs = {name: value for name, value in example.items() if isinstance(value, bytes)}
        return {"json": json.dumps(metadata).encode()} | {{"caption": "txt"}.get(n, n): v for n, v in blobs.items()}

    write_samples(path, [(example["key"], members(example)) for example in examples])


def write_parquet(path, examples):
    names = dict.fromkeys(name for example in examples for name in example)
    columns = {}
    for name in names:
        values = [example.get(name) for example in examples]
        columns[name] = pa.array(values, pa.binary()) if any(isinstance(v, bytes) for v in values) else pa.array(values)
    if pa.types.is_binary(columns["caption"].type):  # text as careless writers leave it
        columns["caption"] = columns["caption"].view(pa.string())
    pq.write_table(pa.table(columns), path, row_group_size=5, use_dictionary=False)


WRITERS = {"tfrecord": write_examples, "webdataset": write_tar, "parquet": write_parquet}


@pytest.fixture
def run(tmp_path, encode, tokenizer_dir):
    """Writes twenty records, some changed, spoils the file, evaluates: labels left, faults by reason, places."""

    def run(form, changes=None, spoil=lambda data: data, **options):
        examples = [
            {"key": f"{n:04d}", "png": encode((n, 0, 0)), "caption": f"a photo {n}", "label": n} for n in range(NUM)
        ]
        for n, change in (changes or {}).items():
            examples[n] = {name: value for name, value in {**examples[n], **change}.items() if value is not ...}
        path = tmp_path / f"a.{form}"
        WRITERS[form](path, examples)
        path.write_bytes(spoil(path.read_bytes()))
        source = SourceConfig(format=form, shards=str(path))
        options = {"shuffle": False, "num_epochs": 1, "tokenizer": tokenizer_dir, **options}
        config = DataConfig(sources=(source,), image_size=8, text_length=8, **options)
        with Pipeline(config, global_batch_size=NUM) as pipeline:
            labels = [label for batch in pipeline for label in batch.label[batch.mask].tolist()]
            return labels, pipeline.faults, pipeline.recent_faults

    return run


def without(*gone):
    return [n for n in range(NUM) if n not in gone]


@pytest.mark.parametrize("form", ["tfrecord", "webdataset"])
def test_a_shard_cut_short_keeps_what_is_whole(run, form):
    labels, faults, (fault,) = run(form, spoil=lambda data: data[: len(data) // 2])
    assert 5 < len(labels) < NUM
    assert labels == list(range(len(labels)))
    assert faults == {"shard_cut_short": 1}
    assert fault.offset > 0


def test_a_parquet_shard_cut_short_is_named_and_skipped(run, tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet: bad_shard"):
        run("parquet", spoil=lambda data: data[: len(data) // 2])
    write_parquet(tmp_path / "b.parquet", [{"png": b"x", "caption": "c"}])
    source = SourceConfig(format="parquet", shards=str(tmp_path / "*.parquet"))
    assert [os.path.basename(record.shard) for record in read_records(source)] == ["b.parquet"]


def flip(pattern, distance=0):
    def spoil(data):
        data = bytearray(data)
        data[data.index(pattern) + distance] ^= 1
        return bytes(data)

    return spoil


def test_a_flipped_data_byte_loses_one_record(run):
    labels, faults, (fault,) = run("tfrecord", spoil=flip(b"a photo 7"))
    assert (labels, faults) == (without(7), {"bad_checksum": 1})
    assert fault.row == 7
    assert fault.offset > 0


def test_a_flipped_length_byte_stops_the_shard(run):
    def spoil(data):
        data, offset = bytearray(data), 0
        for _ in range(7):
            offset += 16 + struct.unpack_from("<Q", data, offset)[0]
        data[offset] ^= 1
        spoil.offset = offset
        return bytes(data)

    labels, faults, (fault,) = run("tfrecord", spoil=spoil)
    assert (labels, faults, fault.offset) == (list(range(7)), {"bad_length": 1}, spoil.offset)


@pytest.mark.parametrize("form", FORMS)
def test_images_that_are_none_are_dropped(run, form, encode):
    rotten = bytearray(encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), form="JPEG"))
    rotten[len(rotten) // 2 : len(rotten) // 2 + 40] = b"\xff\xd9" * 20
    whole = encode()
    damaged = bytearray(whole)
    damaged[-20] ^= 1  # in the pixels' checksum
    changes = {
        2: {"png": whole[:-15]},
        3: {"png": b"<!doctype html><html></html>"},
        4: {"png": b""},
        5: {"png": bytes(damaged)},
        6: {"png": bytes(rotten)},
        7: {"png": whole[:10]},
    }
    labels, faults, places = run(form, changes)
    assert labels == without(*changes)
    assert faults == {"bad_image": 5, "missing_image": 1}
    assert [fault.row for fault in places] == list(changes)
    assert [fault.key for fault in places if fault.reason == "bad_image"] == ["0002", "0003", "0005", "0006", "0007"]


@pytest.mark.parametrize("form", FORMS)
def test_blank_captions_by_policy(run, form):
    changes = {1: {"caption": ...}, 2: {"caption": ""}, 3: {"caption": " \n\t"}, 4: {"caption": None}}
    assert run(form, changes)[:2] == (without(1, 2, 3, 4), {"empty_caption": 4})
    assert run(form, changes, empty_caption="keep")[:2] == (without(), {})


@pytest.mark.parametrize("form", FORMS)
def test_captions_that_are_not_utf8_are_kept_and_counted(run, form):
    captions = {n: {"caption": f"a photo {n}".encode()} for n in range(NUM)} | {9: {"caption": b"caf\xe9"}}
    labels, faults, (fault,) = run(form, captions)
    assert (labels, faults) == (without(), {"caption_not_utf8": 1})
    assert "caf\ufffd" in fault.detail
    assert (fault.row, fault.lost) == (9, False)


@pytest.mark.parametrize("where", ["webdataset", "folder"])
def test_json_that_is_strange_loses_its_record_at_most(tmp_path, encode, tokenizer_dir, where):
    texts = {
        "0": '{"caption": "a \\ud83d photo"}',  # half of a surrogate pair
        "1": '{"caption": ' + "[" * 60 + '"a"' + "]" * 60 + "}",
        "2": '{"caption": ' + "[" * 900 + "1" + "]" * 900 + "}",
        "3": '{"caption": "a", "similarity": 1' + "0" * 400 + "}",
        "4": '{"caption": "a", "similarity": 0.5}',
    }
    if where == "folder":
        for key, text in texts.items():
            (tmp_path / f"{key}.png").write_bytes(encode())
            (tmp_path / f"{key}.json").write_text(text)
    else:
        members = [(key, {"png": encode(), "json": text.encode()}) for key, text in texts.items()]
        write_samples(tmp_path / "a.tar", members)
    keep = (Filter(column="similarity", min=0.1, missing="keep"),)
    shards = str(tmp_path / "a.tar") if where == "webdataset" else str(tmp_path)
    source = SourceConfig(format=where, shards=shards, filters=keep)
    options = {"shuffle": False, "num_epochs": 1, "tokenizer": tokenizer_dir, "text_length": 8}
    with Pipeline(DataConfig(sources=(source,), image_size=8, **options), global_batch_size=5) as pipeline:
        batch = next(pipeline)
        assert batch.mask.tolist() == [True, True, False, True, True]
        assert batch.caption[0] == "a ? photo"
        assert pipeline.faults == {"bad_record": 1, "caption_not_utf8": 1}
        assert [fault.key for fault in pipeline.recent_faults] == ["0", "2"]


@pytest.mark.parametrize("form", FORMS)
def test_a_decompression_bomb_is_refused_from_its_header(run, form):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    side = 30_000
    pixels = zlib.compress(bytes(1 << 20), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    labels, faults, (fault,) = run(form, {11: {"png": bomb}})
    assert (labels, faults) == (without(11), {"image_too_large": 1})
    assert "30000x30000" in fault.detail


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_shard_is_warned_of(form, tmp_path, run, caplog):
    run(form)
    (tmp_path / f"b.{form}").touch()
    source = SourceConfig(format=form, shards=str(tmp_path / f"*.{form}"))
    config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=1)
    with Pipeline(config, global_batch_size=NUM) as pipeline:
        assert (pipeline.num_samples, pipeline.faults) == (NUM, {"empty_shard": 1})
    assert f"b.{form}: empty_shard" in caplog.text


def test_all_that_is_missing_or_locked_is_named_at_the_start(tmp_path, monkeypatch):
    for name in "abc":
        write_examples(tmp_path / f"{name}.tfrecord", [{"png": b"x"}])

    def pipeline(*patterns):
        sources = [SourceConfig(format="tfrecord", shards=str(tmp_path / pattern)) for pattern in patterns]
        return Pipeline(
            DataConfig(sources=tuple(sources), image_size=8, tokenizer=None, text_length=1), global_batch_size=1
        )

    with pytest.raises(FileNotFoundError) as missing:
        pipeline("{a,x,y}.tfrecord", "b.tfrecord", "no/*.tfrecord")
    assert all(name in str(missing.value) for name in ("x.tfrecord", "y.tfrecord", "no/*.tfrecord"))
    assert "b.tfrecord" not in str(missing.value)

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(("a.tfrecord", "c.tfrecord")))
    with pytest.raises(PermissionError) as locked:
        pipeline("{a,b}.tfrecord", "c.tfrecord")
    assert all(name in str(locked.value) for name in ("a.tfrecord", "c.tfrecord"))
    assert "b.tfrecord" not in str(locked.value)
    for patterns in (("{a,x}.tfrecord", "b.tfrecord", "c.tfrecord"), ("a.tfrecord", "{c,x}.tfrecord")):
        with pytest.raises(FileNotFoundError) as both:
            pipeline(*patterns)
        assert all(name in str(both.value) for name in ("a.tfrecord", "c.tfrecord", "x.tfrecord", "no permission"))


@pytest.mark.parametrize("form", FORMS)
def test_duplicate_keys_are_kept_and_counted(run, form):
    changes = {8: {"key": "0003"}, 12: {"key": "0003"}}
    for options in ({}, {"num_epochs": 2, "num_threads": 3}):
        labels, faults, places = run(form, changes, **options)
        epochs = options.get("num_epochs", 1)
        assert labels == without() * epochs
        assert faults == {"duplicate_key": 2 * epochs}
        assert [fault.row for fault in places] == [8, 12] * epochs


def test_of_adjacent_members_of_one_name_the_first_counts(run):
    labels, faults, (fault,) = run("webdataset", {8: {"key": "0007"}})
    assert (labels, faults) == (without(8), {"duplicate_key": 1})
    assert "2 members have the name" in fault.detail


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_bad_data_fails_at_once(run, form):
    changes = {n: {"png": b"<html>"} for n in range(NUM)}
    with pytest.raises(DataError, match=r"64 records .*bad_image"):
        run(form, changes, shuffle=True, num_epochs=None)
    with pytest.raises(DataError, match=r"none of 20 samples could be used \(20 bad_image"):
        run(form, changes)
