import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data import DataConfig, DataError, Pipeline, SourceConfig, census, preparer
from clip_data.tfrecord import write_examples

NUM = 33


def take(pipeline, count):
    return list(itertools.islice(pipeline, count))


def keys(batches):
    return [key for batch in batches for key, real in zip(batch.key, batch.mask, strict=True) if real]


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.key == b.key
        for name in ("image", "mask", "image_ids", "text_ids", "label"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_batch_holds_what_was_written(config, tokenizer_dir):
    with Pipeline(config(tokenizer=tokenizer_dir), global_batch_size=20) as pipeline:
        batch = next(pipeline)
    assert pipeline.num_samples == NUM
    assert len(pipeline.shards) == 4
    assert batch.mask.all()
    assert (batch.image.shape, batch.image.dtype) == ((20, 8, 8, 3), np.uint8)
    for array in (batch.input_ids, batch.attention_mask, batch.image_ids, batch.text_ids, batch.label):
        assert array.dtype == np.int32
    assert len(set(batch.image_ids)) == len(set(batch.text_ids)) == 20
    for row, label in enumerate(batch.label):
        assert batch.key[row] == f"{label:08d}"
        assert batch.image[row, 3, 4].tolist() == [label * 5, label, 255 - label]
        assert batch.input_ids[row].tolist() == [3, 4, 5, 6, 7 + label, 1, 0, 0]
        assert batch.attention_mask[row].tolist() == [1] * 6 + [0] * 2


def test_evaluation_sees_every_sample_once(config, tokenizer_dir):
    options = {"shuffle": False, "num_epochs": 1, "tokenizer": tokenizer_dir}
    for count in (1, 2, 4, 8):
        seen = []
        for index in range(count):
            with Pipeline(
                config(**options), global_batch_size=16, process_index=index, process_count=count
            ) as pipeline:
                batches = list(pipeline)
                assert len(batches) == pipeline.num_batches == 3
                pipeline.rewind()
                same(batches, list(pipeline))
            seen += keys(batches)
            assert {len(batch) for batch in batches} == {16 // count}
            last = batches[-1]
            assert not last.image[~last.mask].any()
            assert (last.text_ids[~last.mask] == -1).all()
        assert sorted(seen) == [f"{n:08d}" for n in range(NUM)]
        if count == 1:
            assert seen == sorted(seen)


def test_training_runs_over_epochs_in_full_batches(config):
    with Pipeline(config(), global_batch_size=11) as pipeline:  # three batches an epoch
        batches = take(pipeline, 9)
    assert all(batch.mask.all() for batch in batches)
    first, second = keys(batches)[:NUM], keys(batches)[NUM : 2 * NUM]
    assert sorted(first) == sorted(second) == [f"{n:08d}" for n in range(NUM)]
    assert first != second
    with Pipeline(config(num_epochs=2), global_batch_size=10) as pipeline:
        assert len(list(pipeline)) == pipeline.num_batches == 6


def test_order_is_the_same_for_any_threads_and_processes(config):
    def run(threads, count):
        pipelines = [
            Pipeline(config(num_threads=threads), global_batch_size=40, process_index=index, process_count=count)
            for index in range(count)
        ]
        rows = [
            [key for part in parts for key in part.key] for parts in zip(*[take(p, 4) for p in pipelines], strict=True)
        ]
        for pipeline in pipelines:
            pipeline.close()
        return rows

    expected = run(1, 1)
    for threads, count in ((2, 1), (16, 1), (2, 2), (1, 4), (3, 8)):
        assert run(threads, count) == expected


@pytest.mark.parametrize("before", [0, 1, 3, 7])
def test_seek_continues_exactly(config, before):
    with Pipeline(config(), global_batch_size=12) as pipeline:
        take(pipeline, before)
        cursor = json.loads(json.dumps(pipeline.cursor()))
        expected = take(pipeline, 6)
        assert pipeline.cursor()["position"] == (before + 6) * 12
        pipeline.seek(cursor)
        same(take(pipeline, 6), expected)
    with Pipeline(config(num_threads=1), global_batch_size=12) as pipeline:
        pipeline.seek(cursor)
        same(take(pipeline, 6), expected)
    for count in (2, 4):
        parts = [Pipeline(config(), global_batch_size=12, process_index=i, process_count=count) for i in range(count)]
        for part in parts:
            part.seek(cursor)
        for whole in expected:
            pieces = [next(part) for part in parts]
            assert keys(pieces) == whole.key
            np.testing.assert_array_equal(np.concatenate([piece.image for piece in pieces]), whole.image)
        for part in parts:
            part.close()
    with Pipeline(config(), global_batch_size=24) as pipeline:  # another batch holds the same samples, in other rows
        pipeline.seek(cursor)
        assert [sorted(batch.key) for batch in take(pipeline, 3)] == [
            sorted(keys(expected[i : i + 2])) for i in (0, 2, 4)
        ]


def test_sources_mix(shards, tmp_path, encode):
    write_examples(tmp_path / "b.tfrecords", [{"key": "b", "png": encode(), "txt": "b"}] * 5)
    sources = (
        SourceConfig(format="tfrecord", shards=shards, weight=3.0),
        SourceConfig(format="tfrecord", shards=str(tmp_path / "b.tfrecords")),
    )
    options = {"sources": sources, "image_size": 8, "tokenizer": None, "text_length": 1}
    with Pipeline(DataConfig(**options), global_batch_size=40) as pipeline:
        batch = next(pipeline)
    assert batch.key.count("b") == 10
    assert (batch.label == -1).sum() == 10
    with Pipeline(DataConfig(**options, shuffle=False, num_epochs=1), global_batch_size=40) as pipeline:
        assert keys(pipeline) == [*(f"{n:08d}" for n in range(NUM)), *"bbbbb"]


@pytest.fixture
def damaged(tmp_path, examples):
    """Forty records, of which number 3 to 8 are bad in one way each, and one caption is not UTF-8."""
    records = examples(0, 40)
    records[3]["webp"] = records[3]["webp"][:-10]
    records[4]["webp"] = b"<html>"
    records[5]["caption"] = "  \n"
    del records[6]["webp"]
    bomb = bytearray(records[7]["webp"])
    bomb[21:25] = b"\xff\xff\xff\x0f"
    records[7]["webp"] = bytes(bomb)
    records[9]["caption"] = b"caf\xe9"
    path = tmp_path / "bad" / "0.tfrecord"
    path.parent.mkdir()
    write_examples(path, records)
    data = bytearray(path.read_bytes())
    data[data.index(b"photo of number 8")] ^= 1
    path.write_bytes(data[:-3])
    return str(path)


FAULTS = {
    "bad_checksum": 1,
    "bad_image": 2,
    "image_too_large": 1,
    "missing_image": 1,
    "empty_caption": 1,
    "caption_not_utf8": 1,
    "shard_cut_short": 1,
}
BAD = [f"{n:08d}" for n in (3, 4, 5, 6, 7, 8)]


def test_evaluation_masks_bad_samples(config, damaged, tokenizer_dir):
    options = {"shuffle": False, "num_epochs": 1, "tokenizer": tokenizer_dir}
    with Pipeline(config(damaged, **options), global_batch_size=16) as pipeline:
        seen = keys(pipeline)
        assert pipeline.faults == FAULTS
        fault = next(fault for fault in pipeline.recent_faults if fault.reason == "empty_caption")
    assert seen == [f"{n:08d}" for n in range(39) if f"{n:08d}" not in BAD]
    assert (fault.shard, fault.row, fault.key) == (damaged, 5, "00000005")
    assert fault.detail.startswith("the caption is '  \\n'; the fields are key, ")
    with Pipeline(config(damaged, **options, empty_caption="keep"), global_batch_size=16) as pipeline:
        assert "00000005" in keys(pipeline)


def test_training_replaces_bad_samples_the_same_way_everywhere(config, damaged, tokenizer_dir):
    def run(threads, count, skip=0):
        rows, faults = [], []
        pipelines = [
            Pipeline(
                config(damaged, num_threads=threads, tokenizer=tokenizer_dir, max_bad_fraction=0.5),
                global_batch_size=24,
                process_index=index,
                process_count=count,
            )
            for index in range(count)
        ]
        for pipeline in pipelines:
            pipeline.seek({**pipeline.cursor(), "position": 24 * skip})
        for _ in range(6 - skip):
            batches = [next(pipeline) for pipeline in pipelines]
            assert all(batch.mask.all() for batch in batches)
            rows.append(keys(batches))
        for pipeline in pipelines:
            faults.append(pipeline.faults)
            pipeline.close()
        return rows, faults

    expected, (faults,) = run(2, 1)
    assert not set(BAD) & set(itertools.chain.from_iterable(expected))
    assert faults["bad_image"] >= 6
    assert run(1, 1) == (expected, [faults])
    assert run(3, 2)[0] == expected
    assert run(2, 1, skip=2)[0] == expected[2:]


def test_all_bad_fails_at_once(config, tmp_path, examples):
    path = tmp_path / "bad.tfrecord"
    write_examples(path, [{**example, "webp": b"<html>"} for example in examples(0, 40)])
    with Pipeline(config(str(path)), global_batch_size=4) as pipeline:
        for _ in range(2):
            with pytest.raises(DataError, match=r"64 records could not be used .* bad_image: neither JPEG"):
                next(pipeline)
    with (
        Pipeline(config(str(path), shuffle=False, num_epochs=1), global_batch_size=4) as pipeline,
        pytest.raises(DataError, match="none of 40 samples could be used"),
    ):
        list(pipeline)


def test_too_many_bad_fails(config, tmp_path, examples):
    path = tmp_path / "bad.tfrecord"
    records = [{**e, "webp": b"<html>"} if i % 2 else e for i, e in enumerate(examples(0, 40))]
    write_examples(path, records)
    with (
        Pipeline(config(str(path), max_bad_fraction=0.3), global_batch_size=8) as pipeline,
        pytest.raises(DataError, match=r"max_bad_fraction allows 0\.3"),
    ):
        take(pipeline, 20)


def test_records_that_stats_promise_and_the_shard_lacks(config, monkeypatch):
    monkeypatch.setattr(census, "expected_count", lambda path, field: 10)
    options = {"shuffle": False, "num_epochs": 1, "max_bad_fraction": 0.5}
    with Pipeline(config(**options), global_batch_size=8) as pipeline:
        assert pipeline.num_samples == 40
        assert len(keys(pipeline)) == 7 + 10 + 5 + 9
        assert pipeline.faults == {"wrong_count": 3 + 1 + 5 + 1}  # of the second shard two are left


def test_no_records_is_refused_with_the_reason(config, tmp_path):
    (tmp_path / "empty.tfrecord").touch()
    (tmp_path / "text.tfrecord").write_text("this is no TFRecord at all")
    with pytest.raises(ValueError, match="empty_shard: the file is empty"):
        Pipeline(config(str(tmp_path / "empty.tfrecord")), global_batch_size=4)
    with pytest.raises(ValueError, match="not a TFRecord, or a damaged one"):
        Pipeline(config(str(tmp_path / "text.tfrecord")), global_batch_size=4)


def test_what_a_thread_raises_reaches_the_caller(config, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(preparer, "decode_image", fail)
    with Pipeline(config(), global_batch_size=4) as pipeline, pytest.raises(ZeroDivisionError, match="in a thread"):
        next(pipeline)


def test_prefetch_is_bounded(config, monkeypatch):
    decoded = []
    decode = preparer.decode_image
    monkeypatch.setattr(preparer, "decode_image", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    with Pipeline(config(prefetch=3), global_batch_size=5) as pipeline:
        next(pipeline)
        time.sleep(0.2)
        assert 5 <= len(decoded) <= 4 * 5


def test_close_does_not_wait_for_a_hanging_read(config, monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(preparer, "decode_image", lambda *_, **__: hang.wait())
    pipeline = Pipeline(config(), global_batch_size=4)
    threading.Timer(0.2, pipeline.close).start()
    begin = time.perf_counter()
    with pytest.raises(BaseException) as error:  # noqa: PT011
        next(pipeline)
    assert type(error.value).__name__ == "CancelledError"
    assert time.perf_counter() - begin < 2
    with pytest.raises(ValueError, match="closed"):
        next(pipeline)
    hang.set()


def test_the_process_ends_whatever_hangs(config, shards):
    code = f"""if True:
        import os, signal, threading
        from clip_data import DataConfig, Pipeline, SourceConfig, preparer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin by ignoring it
        preparer.decode_image = lambda *_, **__: threading.Event().wait()
        source = SourceConfig(format="tfrecord", shards={shards!r})
        config = DataConfig(sources=(source,), image_size=8, tokenizer=None, text_length=1)
        pipeline = Pipeline(config, global_batch_size=4)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        next(pipeline)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": ()}, "at least one source"),
        ({"image_size": 0}, "image_size must be a side or a height and a width, at least 1, not 0"),
        ({"resize_mode": "crop"}, "squash, shortest, longest, naflex, not 'crop'"),
        ({"max_bad_fraction": 2.0}, r"lie in \[0, 1\], not 2.0"),
        ({"num_epochs": 0}, "num_epochs"),
    ],
)
def test_config_refuses(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{**vars(config()), **wrong})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"global_batch_size": 6, "process_count": 4}, {}, "must divide over 4 processes; 6 does not"),
        ({"global_batch_size": 6, "process_index": 2, "process_count": 2}, {}, r"lie in \[0, 2\), not be 2"),
        ({"global_batch_size": 6, "process_count": 2}, {"padding": "longest"}, "padding must be max_length"),
    ],
)
def test_pipeline_refuses(config, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(config(**options), **arguments)


def test_naflex_batches(tmp_path, encode):
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (16, 64), (90, 30), (8, 8)]
    pictures = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    write_examples(tmp_path / "a.tfrecord", [{"key": str(n), "png": encode(p)} for n, p in enumerate(pictures)])
    options = {"resize_mode": "naflex", "patch_size": 4, "max_patches": 20, "interpolation": "bilinear"}
    source = SourceConfig(format="tfrecord", shards=str(tmp_path / "a.tfrecord"))
    config = DataConfig(
        sources=(source,), image_size=8, tokenizer=None, text_length=1, shuffle=False, num_epochs=1, **options
    )
    with Pipeline(config, global_batch_size=3) as pipeline:
        first, last = pipeline
    assert first.image.shape == (3, 20, 48)
    assert first.spatial_shapes.tolist() == [[4, 4], [2, 8], [6, 2]]
    lengths = first.spatial_shapes.prod(1)
    assert first.pixel_attention_mask.tolist() == [[1] * n + [0] * (20 - n) for n in lengths]
    assert all(image[n - 1].any() and not image[n:].any() for image, n in zip(first.image, lengths, strict=True))
    assert last.mask.tolist() == [True, False, False]
    assert last.spatial_shapes.tolist()[1:] == [[0, 0]] * 2
    assert not last.image[1:].any()


@pytest.fixture
def lengths(tmp_path, examples):
    """Training on sequences of three lengths, with changes."""
    for shard in range(3):
        write_examples(tmp_path / f"{shard}.tfrecords", examples(shard * 20, shard * 20 + 20))

    def pipeline(process_index=0, process_count=1, global_batch_size=8, **options):
        sources = (SourceConfig(format="tfrecord", shards=str(tmp_path / "*.tfrecords")),)
        given = {"resize_mode": "naflex", "patch_size": 2, "max_patches": (16, 4, 9), "image_size": 8, "num_streams": 4}
        config = DataConfig(sources=sources, tokenizer=None, text_length=1, **{**given, **options})
        return Pipeline(
            config, global_batch_size=global_batch_size, process_index=process_index, process_count=process_count
        )

    return pipeline


def test_batches_of_several_lengths_keep_to_a_budget_of_tokens(lengths):
    with lengths(num_epochs=2) as pipeline:
        batches = list(pipeline)
        assert len(batches) == pipeline.num_batches
        assert 120 - pipeline.cursor()["position"] < 32
    for i in range(0, len(batches) - 2, 3):
        assert sorted(batch.image.shape[:2] for batch in batches[i : i + 3]) == [(8, 16), (12, 9), (32, 4)]
    assert len({batch.image.shape for batch in batches[::3]}) > 1
    for batch in batches:
        assert batch.spatial_shapes.prod(1).max() == batch.image.shape[1]
        np.testing.assert_array_equal(batch.pixel_attention_mask.sum(1), batch.spatial_shapes.prod(1))
    counts = Counter(keys(batches))
    assert len(counts) == 60
    assert set(counts.values()) == {1, 2}


def test_batches_of_several_lengths_may_have_one_size(lengths):
    with lengths(batch_by="samples") as pipeline:
        batches = take(pipeline, 6)
    for i in (0, 3):
        assert sorted(batch.image.shape[:2] for batch in batches[i : i + 3]) == [(8, 4), (8, 9), (8, 16)]


def test_several_lengths_resume_exactly_on_any_processes(lengths):
    with lengths() as pipeline:
        take(pipeline, 4)
        cursor = json.loads(json.dumps(pipeline.cursor()))
        expected = take(pipeline, 5)
    assert cursor["batch"] == 4
    for options in ({"num_threads": 1}, {"num_workers": 2}):
        with lengths(**options) as pipeline:
            pipeline.seek(cursor)
            same(take(pipeline, 5), expected)
    parts = [lengths(index, 4) for index in range(4)]
    for part in parts:
        part.seek(cursor)
    for whole in expected:
        pieces = [next(part) for part in parts]
        assert keys(pieces) == whole.key
        np.testing.assert_array_equal(np.concatenate([piece.image for piece in pieces]), whole.image)
    for part in parts:
        part.close()
    with lengths(global_batch_size=16) as pipeline:  # the same samples go on, in batches of twice the size
        pipeline.seek(cursor)
        seen = sorted(keys(take(pipeline, 2)))
        assert pipeline.cursor()["batch"] == 6
    with lengths(max_patches=4, global_batch_size=len(seen)) as pipeline:
        pipeline.seek(cursor)
        assert sorted(next(pipeline).key) == seen


def test_several_lengths_are_refused_where_they_cannot_be(lengths):
    with pytest.raises(ValueError, match="batches of 12 sequences of 9 patches must divide over 8 processes"):
        lengths(0, 8)
    with pytest.raises(ValueError, match="one length in an evaluation"):
        lengths(shuffle=False, num_epochs=1)
    with pytest.raises(ValueError, match=r"at least 1, not \(4, 0\)"):
        lengths(max_patches=[4, 0])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_package_is_light():
    code = "import re, sys; from clip_data import DataConfig, Pipeline, SourceConfig, read_records\n"
    code += "print({'tensorflow', 'transformers', 'pyarrow'} & sys.modules.keys())\n"
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found, kilobytes = done.stdout.splitlines()
    assert found == "set()"
    assert int(kilobytes) < 80_000


def test_a_process_may_end_while_threads_decode(tmp_path, encode):
    pictures = [encode(np.full((256, 256, 3), n, np.uint8), form="WEBP") for n in range(8)]
    write_examples(tmp_path / "a.tfrecord", [{"webp": picture} for picture in pictures] * 40)
    code = f"""if True:
        from clip_data import DataConfig, Pipeline, SourceConfig
        source = SourceConfig(format="tfrecord", shards={str(tmp_path / "a.tfrecord")!r})
        config = DataConfig(sources=(source,), image_size=64, tokenizer=None, text_length=1, num_threads=4)
        pipeline = Pipeline(config, global_batch_size=256)
        next(pipeline)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_texts_alone_need_no_image_and_count_what_is_wrong_with_them(damaged, config, tokenizer_dir):
    options = {"image_size": None, "shuffle": False, "num_epochs": 1, "tokenizer": tokenizer_dir}
    with Pipeline(config(damaged, **options), global_batch_size=16) as pipeline:
        first, cursor, *rest = next(pipeline), pipeline.cursor(), *pipeline
        assert pipeline.faults == {
            "shard_cut_short": 1,
            "bad_checksum": 1,
            "empty_caption": 1,
            "caption_not_utf8": 1,
        }
        pipeline.seek(cursor)
        same(list(pipeline), rest)
    assert first.image is first.pixel_attention_mask is None
    assert set(first.image_ids) == {-1}
    assert first.mask.tolist() == [n not in (5, 8) for n in range(16)]
    assert first.input_ids[4].tolist() == [3, 4, 5, 6, 11, 1, 0, 0]
    with (
        Pipeline(
            config(damaged, resize_mode="naflex", **options | {"num_workers": 1}), global_batch_size=16
        ) as workers,
        Pipeline(config(damaged, shuffle=False, num_epochs=1), global_batch_size=16) as pictures,
    ):
        same([next(workers)], [first])
        with pytest.raises(ValueError, match="images was False and is None"):
            pictures.seek(cursor)


@pytest.mark.parametrize("form", ["parquet", "paths", "csv", "folder"])
def test_texts_alone_leave_images_unread(tmp_path, encode, form):
    captions = [f"a photo of number {n}" for n in range(5)]
    names = [f"{n}.png" for n in range(5)]
    path = tmp_path / f"a.{'csv' if form == 'csv' else 'parquet'}"
    if form == "csv":
        path.write_text("\n".join(["image,caption", *map(",".join, zip(names, captions, strict=True))]))
    elif form == "folder":
        for name, caption in zip(names, captions, strict=True):
            (tmp_path / name).symlink_to(__file__)  # which is no image
            (tmp_path / name).with_suffix(".txt").write_text(caption)
    else:
        images = names if form == "paths" else [encode()] * 4 + [None]
        pq.write_table(pa.table({"image": images, "caption": captions}), path)
    source = SourceConfig(
        format="parquet" if form == "paths" else form, shards=str(tmp_path if form == "folder" else path)
    )
    config = DataConfig(sources=(source,), image_size=None, tokenizer=None, text_length=8, shuffle=False, num_epochs=1)
    with Pipeline(config, global_batch_size=5) as pipeline:
        batch = next(pipeline)
        assert pipeline.faults == {}
    assert batch.caption == captions
    assert batch.key == (
        [""] * 5 if form == "parquet" else [n.removesuffix(".png") for n in names] if form == "folder" else names
    )
