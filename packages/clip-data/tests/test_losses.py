"""What a run loses, when that is too much, and that a run which continues decides as one that was never interrupted."""

import json
import struct
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from clip_data import DataConfig, DataError, Filter, Pipeline, SourceConfig, buckets, read_records
from clip_data.tfrecord import write_examples


@pytest.fixture
def shards(tmp_path, encode):
    """Writes shards of so many records, of which those of some numbers are no pictures, and makes configs of them."""

    def shards(num_shards, size, is_bad, **options):
        good = encode()
        for shard in range(num_shards):
            rows = range(shard * size, shard * size + size)
            write_examples(
                tmp_path / f"{shard:03d}.tfrecord",
                [{"key": str(n), "png": b"<html>" if is_bad(n) else good, "label": n} for n in rows],
            )
        source = SourceConfig(format="tfrecord", shards=str(tmp_path / "*.tfrecord"), **options.pop("source", {}))
        options = {"image_size": 8, "tokenizer": None, "text_length": 1, **options}
        return DataConfig(sources=(source,), **options)

    return shards


EVALUATION = {"shuffle": False, "num_epochs": 1}


def count_real(pipeline):
    return sum(int(batch.mask.sum()) for batch in pipeline)


@pytest.mark.parametrize("seed", range(4))
def test_a_bad_shard_is_a_share_of_all_of_them(shards, seed):
    config = shards(20, 50, lambda n: n // 50 == 7, seed=seed, num_epochs=2)  # a twentieth, of the block an eighth
    with Pipeline(config, global_batch_size=40) as pipeline:
        assert count_real(pipeline) == 2000
        assert pipeline.faults == {"bad_image": 100}  # each of them once an epoch, whatever is drawn in their place
        assert pipeline.last_epoch_faults == {"bad_image": 50}


def test_a_training_gives_up_where_its_cursor_says(shards):
    config = shards(4, 50, lambda n: n % 5 == 0, num_epochs=3)
    with Pipeline(config, global_batch_size=20) as pipeline:
        cursors = [pipeline.cursor()]
        with pytest.raises(DataError, match="40 of 200") as error:
            cursors.extend(pipeline.cursor() for _ in pipeline)
        message, faults = str(error.value), pipeline.faults
        assert pipeline.cursor() == cursors[-1]  # of what was delivered
        with pytest.raises(DataError, match="40 of 200"):
            next(pipeline)
    for cursor in cursors:
        with Pipeline(config, global_batch_size=20) as pipeline:
            pipeline.seek(json.loads(json.dumps(cursor)))
            with pytest.raises(DataError) as error:
                list(pipeline)
            assert str(error.value) == message
            assert pipeline.faults == faults


def test_an_evaluation_may_begin_and_end_with_bad_samples(shards):
    config = shards(2, 50, lambda n: n < 4 or n >= 96, **EVALUATION)
    for batch_size in (1, 2, 30):
        with Pipeline(config, global_batch_size=batch_size) as pipeline:
            cursors = [pipeline.cursor() for _ in pipeline]
            assert cursors[-1]["position"] == 100
            assert pipeline.faults == {"bad_image": 8}
        with Pipeline(config, global_batch_size=batch_size) as pipeline:
            for cursor in cursors[-3:]:
                pipeline.seek(cursor)
                count_real(pipeline)
                assert pipeline.faults == {"bad_image": 8}


def test_an_evaluation_counts_anew_each_time(shards, caplog):
    with Pipeline(shards(2, 50, lambda n: n == 3, **EVALUATION), global_batch_size=16) as pipeline:
        for _ in range(3):
            assert count_real(pipeline) == 99
            assert pipeline.faults == {"bad_image": 1}
            pipeline.rewind()
    assert "epoch 1: 1 of 100 samples could not be used (1 bad_image)" in caplog.text


def test_nothing_but_bad_samples_fails_however_small_the_batches(shards):
    config = shards(1, 10, lambda n: True, **EVALUATION, max_bad_fraction=1.0)
    with (
        Pipeline(config, global_batch_size=1) as pipeline,
        pytest.raises(DataError, match="none of 10 samples could be used"),
    ):
        list(pipeline)
    with pytest.raises(DataError, match="none of 10 samples could be used"):
        list(read_records(SourceConfig(format="tfrecord", shards=config.sources[0].shards, image_key="jpg")))


def test_a_resumed_evaluation_whose_rest_is_not_wanted_ends(shards):
    source = {"filters": (Filter(column="label", max=89),)}
    with Pipeline(shards(1, 100, lambda n: False, source=source, **EVALUATION), global_batch_size=10) as pipeline:
        cursors = [pipeline.cursor() for _ in pipeline]
        pipeline.seek(cursors[8])
        assert count_real(pipeline) == 0
        assert pipeline.skipped == {"filtered": 10}


class Processes:
    """Pipelines of one run, each in a thread, which add up their counts as processes of a trainer do."""

    def __init__(self, config, count, *, batch_size, cursor=None):
        self._barrier, self._rows = threading.Barrier(count), [[] for _ in range(count)]
        self.cursors, self.errors, self.faults = [[] for _ in range(count)], [""] * count, [{}] * count
        threads = [
            threading.Thread(target=self._run, args=(config, i, count, batch_size, cursor)) for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    def _sum(self, index, counts):
        self._rows[index] = counts
        self._barrier.wait(30)
        total = [sum(column) for column in zip(*self._rows, strict=True)]
        self._barrier.wait(30)
        return total

    def _run(self, config, index, count, batch_size, cursor):
        options = {"process_index": index, "process_count": count}
        if count > 1:
            options["sum_counts"] = lambda counts: self._sum(index, counts)
        with Pipeline(config, global_batch_size=batch_size, **options) as pipeline:
            if cursor is not None:
                pipeline.seek(cursor)
            try:
                for _ in pipeline:
                    self.cursors[index].append(pipeline.cursor())
            except DataError as error:
                self.errors[index] = str(error).partition(". The last")[0]
            self.faults[index] = pipeline.faults


def test_processes_decide_together_and_as_any_number_of_them(shards):
    # The bad ones lie in two of eight streams: of a process that reads no other, a half.
    config = shards(
        8, 64, lambda n: n % 2 == 0 and n // 64 < 2, num_epochs=2, block_shards=4, num_streams=4, num_threads=1
    )
    alone = Processes(config, 1, batch_size=32)
    assert alone.errors == ["64 of 512 samples could not be used (64 bad_image); max_bad_fraction allows 0.1"]
    for count in (2, 4):
        run = Processes(config, count, batch_size=32)
        assert run.errors == alone.errors * count
        assert run.cursors == alone.cursors * count
        delivered = alone.cursors[0][-1]["counts"]["run"]["bad_image"]  # the last batch was not
        assert sum(faults.get("bad_image", 0) for faults in run.faults) == delivered < 64
    half = alone.cursors[0][10]
    assert half["counts"]["run"]["bad_image"] > 16
    for count in (1, 2, 4):
        run = Processes(config, count, batch_size=32, cursor=half)
        assert run.errors == alone.errors * count
        assert run.cursors == [alone.cursors[0][11:]] * count


def test_processes_that_cannot_add_up_judge_their_own(shards):
    config = shards(2, 64, lambda n: n < 4, **EVALUATION)
    with Pipeline(config, global_batch_size=64, process_index=0, process_count=16) as pipeline:
        assert [batch.mask.sum() for batch in pipeline] == [0, 4]
        assert pipeline.faults == {"bad_image": 4}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Evaluates or trains on what lies in a folder, as in a bucket: the samples, the faults, and the latest of them."""
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(buckets, "_filesystem", lambda path: (local, path.partition("://")[2]))
    (tmp_path / "bucket").mkdir()

    def run(form, **options):
        source = SourceConfig(format=form, shards=f"gs://bucket/*.{form}")
        options = {**EVALUATION, "image_size": 8, "tokenizer": None, "text_length": 1, **options}
        with Pipeline(DataConfig(sources=(source,), **options), global_batch_size=10) as pipeline:
            return count_real(pipeline), pipeline.faults, pipeline.recent_faults

    return run


def state(path, count):
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"count": count, "successes": count}))


def test_a_shard_whose_count_is_stated_is_named_when_it_is_bad(bucket, tmp_path, encode):
    for shard in range(20):
        path = tmp_path / f"bucket/{shard:02d}.parquet"
        pq.write_table(pa.table({"png": [encode()] * 10, "caption": ["c"] * 10}), path)
        state(path, 10)
    path.write_bytes(path.read_bytes()[:-30])
    real, faults, recent = bucket("parquet")
    assert (real, faults) == (190, {"bad_shard": 10})
    assert recent[0].shard == "gs://bucket/19.parquet"
    assert recent[0].detail.startswith("0 of 10 records are left: not a Parquet file")
    real, faults, _ = bucket("parquet", shuffle=True)
    assert (real, faults) == (200, {"bad_shard": 10})


def test_a_shard_that_holds_other_than_is_stated(bucket, tmp_path, encode):
    paths = [tmp_path / f"bucket/{shard}.tfrecord" for shard in range(4)]
    for path, stated in zip(paths, (10, 6, 10, 13), strict=True):
        write_examples(path, [{"png": encode()}] * 10)
        state(path, stated)
    data, offset = bytearray(paths[0].read_bytes()), 0
    for _ in range(8):
        offset += 16 + struct.unpack_from("<Q", data, offset)[0]
    data[offset] ^= 1
    paths[0].write_bytes(data)
    real, faults, recent = bucket("tfrecord", max_bad_fraction=0.5)
    assert (real, faults) == (8 + 6 + 10 + 10, {"bad_length": 2, "wrong_count": 1 + 3})
    details = {fault.shard[-10:]: fault.detail for fault in recent}
    assert details["0.tfrecord"].startswith("8 of 10 records are left: the length's checksum")
    assert details["1.tfrecord"] == "its _stats.json states 6 records, and the 4 after them are not read"
    assert details["3.tfrecord"] == "its _stats.json states 13 records, and it holds 10"


def test_every_fault_names_its_key(tmp_path, encode):
    good = {"png": encode(), "caption": "a", "label": 1, "v": [1.0]}
    changes = {
        "missing_image": {"png": None},
        "bad_image": {"png": b"<html>"},
        "missing_label": {"label": None},
        "bad_record": {"label": "x"},
        "missing_embedding": {"v": None},
        "filtered": {"caption": "no"},
    }
    records = [{"key": reason, **good, **change} for reason, change in changes.items()]
    write_examples(tmp_path / "a.tfrecord", [*records, *[good] * 4])
    source = SourceConfig(
        format="tfrecord",
        shards=str(tmp_path / "a.tfrecord"),
        label_key="label",
        filters=(Filter(column="caption", none_of=("no",)),),
    )
    config = DataConfig(
        sources=(source,), image_size=8, tokenizer=None, text_length=1, embeddings={"v": 1}, **EVALUATION
    )
    logged = {}
    with Pipeline(config, global_batch_size=10) as pipeline:
        add = pipeline._log.add
        pipeline._log.add = lambda faults, **rest: add(
            (logged.setdefault(fault.reason, fault) for fault in faults), **rest
        )
        next(pipeline)
    assert {reason: fault.key for reason, fault in logged.items()} == {reason: reason for reason in changes}


def test_an_error_of_a_transform_says_where(tmp_path, encode):
    write_examples(tmp_path / "a.tfrecord", [{"key": "k", "png": encode()}])
    source = SourceConfig(format="tfrecord", shards=str(tmp_path / "a.tfrecord"))
    config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=1, transform=fail)
    with Pipeline(config, global_batch_size=1) as pipeline, pytest.raises(KeyError) as error:
        next(pipeline)
    assert error.value.__notes__ == [f"with row 0 of {tmp_path}/a.tfrecord, key k"]


def fail(record):
    return record.metadata["uid"]
