import itertools
import os
import signal
import sys
import time
import types

import numpy as np
import pytest

from clip_data import DataError, Pipeline
from clip_data.tfrecord import write_examples


def take(pipeline, count):
    return list(itertools.islice(pipeline, count))


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.key == b.key
        for name in ("image", "mask", "image_ids", "text_ids", "label"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_processes_make_the_same_batches_and_resume(config):
    with Pipeline(config(), global_batch_size=12) as pipeline:
        expected = take(pipeline, 8)
        faults = pipeline.faults
    with Pipeline(config(num_workers=2, num_threads=3), global_batch_size=12) as pipeline:
        batches = take(pipeline, 3)
        cursor = pipeline.cursor()
        batches += take(pipeline, 5)  # held, all of them, while the memory for the next is shared
        same(batches, expected)
        pipeline.seek(cursor)
        same(take(pipeline, 5), expected[3:])
        assert pipeline.faults == faults == {}


def test_processes_evaluate(config, tmp_path, examples):
    records = examples(0, 20)
    records[3]["webp"] = b"<html>"
    write_examples(tmp_path / "bad.tfrecord", records)
    options = {"shuffle": False, "num_epochs": 1, "num_workers": 2}
    with Pipeline(config(str(tmp_path / "bad.tfrecord"), **options), global_batch_size=8) as pipeline:
        batches = list(pipeline)
        assert pipeline.faults == {"bad_image": 1}
    assert [batch.mask.tolist() for batch in batches] == [
        [n != 3 for n in range(8)],
        [True] * 8,
        [True] * 4 + [False] * 4,
    ]
    assert not batches[0].image[3].any()
    assert not batches[2].image[4:].any()


def test_errors_of_a_process_reach_the_caller(config, tmp_path, examples):
    path = tmp_path / "bad.tfrecord"
    write_examples(path, [{**example, "webp": b"<html>"} for example in examples(0, 40)])
    with (
        Pipeline(config(str(path), num_workers=1), global_batch_size=4) as pipeline,
        pytest.raises(DataError, match=r"64 records could not be used .* bad_image: neither JPEG"),
    ):
        next(pipeline)


def test_a_transform_of_the_program_itself_is_refused(config, monkeypatch):
    main = types.ModuleType("__main__")
    exec("def keep(record): return record", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ValueError, match="num_workers needs a transform of a module"):
        Pipeline(config(num_workers=1, transform=main.keep), global_batch_size=4)


def test_a_process_that_dies_is_reported(config):
    with Pipeline(config(num_workers=2), global_batch_size=4) as pipeline:
        next(pipeline)
        os.kill(pipeline._executor._workers[1].process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with status -9"):
            take(pipeline, 50)


def test_closing_ends_the_processes(config):
    pipeline = Pipeline(config(num_workers=1), global_batch_size=4)
    next(pipeline)
    (process,) = (worker.process for worker in pipeline._executor._workers)
    pipeline.close()
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is not None
