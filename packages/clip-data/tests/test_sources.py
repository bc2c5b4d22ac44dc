import itertools
import os
import time
from types import SimpleNamespace

import pytest
from pyarrow import fs

from clip_data import DataConfig, Pipeline, SourceConfig, buckets, list_shards, read_records, sources
from clip_data.tfrecord import write_examples


def test_lists_globs_braces_and_files(tmp_path):
    for n in range(8, 13):
        (tmp_path / f"{n:03d}.tar").touch()
    names = lambda *patterns: [os.path.basename(p) for p in list_shards([f"{tmp_path}/{q}" for q in patterns])]  # noqa: E731
    assert names("{009..011}.tar") == ["009.tar", "010.tar", "011.tar"]
    assert names("*.tar") == ["008.tar", "009.tar", "010.tar", "011.tar", "012.tar"]
    assert names("{012,008}.tar", "00[9].tar") == ["012.tar", "008.tar", "009.tar"]
    assert list_shards(f"file://{tmp_path}/008.tar") == [f"{tmp_path}/008.tar"]


def test_braces_in_one_another_and_too_many(tmp_path):
    for name in ("a", "b1", "b2"):
        (tmp_path / f"{name}.tar").touch()
    assert [os.path.basename(path) for path in list_shards(f"{tmp_path}/{{b{{1..2}},a}}.tar")] == [
        "b1.tar",
        "b2.tar",
        "a.tar",
    ]
    for wrong, message in (
        ("{0..9999999999}", r"names 10000000000 shards, more than 1000000"),
        ("{0..9999}{0..9999}", r"names 100000000 shards, more than 1000000"),
        ("{0..3", "a brace does not end"),
        ("{3..1}", "must count up"),
        ("{}", r"a brace list is \{000..123\}"),
    ):
        with pytest.raises(ValueError, match=message):
            list_shards(f"{tmp_path}/{wrong}.tar")


def test_a_name_with_brackets_or_braces_is_a_name_first(tmp_path):
    for name in ("x[1].tar", "x{1}.tar", "x1.tar", "*.tar"):
        (tmp_path / name).touch()
        assert list_shards(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]


def test_a_read_that_the_system_cuts_goes_on(tmp_path, monkeypatch):
    (tmp_path / "1.tar").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, offset: pread(file, min(length, 30), offset))
    shard = sources.open_shard(str(tmp_path / "1.tar"))
    assert shard.read_at(5, 1000) == bytes(range(5, 100))
    assert shard.read_at(0, 10) == bytes(range(10))


def test_every_missing_shard_is_named(tmp_path):
    (tmp_path / "1.tar").touch()
    with pytest.raises(FileNotFoundError) as error:
        list_shards([f"{tmp_path}/{{0..2}}.tar", f"{tmp_path}/*.tfrecord", str(tmp_path)])
    for name in ("0.tar", "2.tar", "*.tfrecord"):
        assert f"{tmp_path}/{name}" in str(error.value)
    assert "1.tar" not in str(error.value)
    assert "glob" in str(error.value)


def test_a_shard_may_be_named_once(tmp_path):
    (tmp_path / "1.tar").touch()
    with pytest.raises(ValueError, match=r"1\.tar came again"):
        list_shards([f"{tmp_path}/1.tar", f"{tmp_path}/*.tar"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "zip"}, "one of tfrecord, webdataset, .* not 'zip'"),
        ({"shards": ()}, "at least one shard"),
        ({"weight": 0.0}, "positive number, not 0.0"),
        ({"image_key": ""}, "image_key"),
    ],
)
def test_source_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**{"format": "tfrecord", "shards": "x", **wrong})


def test_the_next_block_is_fetched_ahead(tmp_path, monkeypatch, examples):
    (tmp_path / "bucket").mkdir()
    for n in range(4):
        write_examples(tmp_path / f"bucket/{n}.tfrecord", examples(4 * n, 4 * n + 4))
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(buckets, "_filesystem", lambda path: (local, path.partition("://")[2]))
    source = SourceConfig(format="tfrecord", shards="s3://bucket/*.tfrecord")
    config = DataConfig(
        sources=(source,), image_size=8, tokenizer=None, text_length=1, block_shards=1, num_streams=1, prefetch=1
    )
    with Pipeline(config, global_batch_size=4) as pipeline:
        opened = pipeline._executor._preparer._open
        next(pipeline)  # block 0; block 1 is prefetched as a batch, and block 2 ahead of it
        deadline = time.monotonic() + 5
        while len(opened) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        later = {place.shard for place in map(pipeline._order, range(8, 12))}
        assert {shard for _, shard in opened} >= later
        assert len({key for batch in itertools.islice(pipeline, 3) for key in batch.key}) == 12


def test_buckets(tmp_path, monkeypatch, examples):
    (tmp_path / "bucket" / "a").mkdir(parents=True)
    for n in range(2):
        write_examples(tmp_path / f"bucket/a/{n}.tfrecord", examples(n, n + 1))
    (tmp_path / "bucket/a/1_stats.json").write_text('{"successes": 1}')
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(buckets, "_filesystem", lambda path: (local, path.partition("://")[2]))
    pattern = "gs://bucket/*/{0,1}.tfrecord"
    assert list_shards(pattern) == ["gs://bucket/a/0.tfrecord", "gs://bucket/a/1.tfrecord"]
    assert [r.label for r in read_records(SourceConfig(format="tfrecord", shards=pattern))] == [0, 1]
    assert [sources.expected_count(path) for path in list_shards(pattern)] == [None, 1]
    with pytest.raises(FileNotFoundError, match="gs://bucket/b/x"):
        list_shards("gs://bucket/b/x")
    with pytest.raises(OSError, match="gs://bucket/none cannot be read"):
        sources.open_shard("gs://bucket/none")


def test_without_credentials_nothing_is_awaited(monkeypatch):
    text = (
        "Could not create a OAuth2 access token to authenticate the request. CURL error [6]=Could not resolve hostname"
    )

    def fail(*_):
        raise OSError(f"google::cloud::Status(UNAVAILABLE: {text})")

    monkeypatch.setattr(buckets, "_filesystem", lambda path: (SimpleNamespace(get_file_info=fail), "bucket/a"))
    with pytest.raises(PermissionError, match=r"no credentials for gs://bucket/a\.tfrecord: set GOOGLE_APPLICATION"):
        list_shards("gs://bucket/a.tfrecord")


def test_a_store_that_keeps_failing_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(buckets, "_FIRST_WAIT_SECONDS", 0)
    retries = buckets._Retries("gs://bucket/a")
    for _ in range(20):
        retries.wait(OSError("503"))
    assert [record.args[1] for record in caplog.records] == [4, 8, 16]
    assert "gs://bucket/a: 16 attempts failed, the next one is in 0.0 s: 503" in caplog.text
