import json

import numpy as np
import pytest

from clip_data import DataConfig, Pipeline, SourceConfig, preparer
from clip_data.faults import REASONS
from clip_data.tfrecord import write_examples


class Long:
    """A transform of a long name."""

    identity = "x" * 5000

    def __call__(self, record):
        return record


def test_seek_refuses_another_run(config, tmp_path, examples):
    with Pipeline(config(), global_batch_size=4) as pipeline:
        cursor = pipeline.cursor()
    assert len(json.dumps(cursor)) < 4096
    with (
        Pipeline(config(seed=1, block_shards=3), global_batch_size=4) as pipeline,
        pytest.raises(ValueError, match=r"seed was 0 and is 1; block_shards was 2 and is 3$"),
    ):
        pipeline.seek(cursor)
    write_examples(tmp_path / "00001.tfrecord", examples(7, 18))
    with Pipeline(config(), global_batch_size=4) as pipeline:
        with pytest.raises(ValueError, match=r"sources was \[\[4, 33, .* and is \[\[4, 32"):
            pipeline.seek(cursor)
        with pytest.raises(ValueError, match="count of samples, not None"):
            pipeline.seek({**pipeline.cursor(), "position": None})


def test_data_may_move(config, tmp_path):
    with Pipeline(config(), global_batch_size=4) as pipeline:
        cursor = pipeline.cursor()
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("*.tfrecord"):
        path.rename(tmp_path / "moved" / path.name)
    with Pipeline(config(str(tmp_path / "moved" / "*.tfrecord")), global_batch_size=4) as pipeline:
        pipeline.seek(cursor)


def test_a_cursor_is_small(config, tmp_path, examples):
    sources = []
    for n in range(60):
        write_examples(tmp_path / f"source-{n}.tfrecords", examples(n, n + 1))
        sources.append(
            SourceConfig(
                format="tfrecord",
                shards=str(tmp_path / f"source-{n}.tfrecords"),
                weight=n + 0.123,
                caption_key=tuple(f"{letter * 300}{n}" for letter in "ab"),
            )
        )
    options = {"image_size": 8, "tokenizer": None, "text_length": 1, "transform": Long()}
    options["embeddings"] = {"e" * 300: 1}
    with Pipeline(DataConfig(sources=sources, **options), global_batch_size=4) as pipeline:
        many = dict.fromkeys(REASONS, 10**13)
        cursor = {**pipeline.cursor(), "position": 10**15, "batch": 10**13}
        pipeline.seek(cursor | {"counts": {"run": many, "epoch": many, "samples": 10**15, "lost": 10**15}})
        cursor = pipeline.cursor()
    assert len(json.dumps(cursor)) < 4096
    with (
        Pipeline(DataConfig(sources=sources[::-1], **options), global_batch_size=4) as pipeline,
        pytest.raises(ValueError, match="sources was"),
    ):
        pipeline.seek(cursor)


@pytest.mark.parametrize(
    "wrong", [None, [], "x", {"position": True}, {"batch": True}, {"position": 1.0}, {"position": -1}]
)
def test_what_is_no_cursor_is_refused(config, wrong):
    with Pipeline(config(), global_batch_size=4) as pipeline, pytest.raises(ValueError, match="cursor"):
        pipeline.seek({**pipeline.cursor(), **wrong} if isinstance(wrong, dict) else wrong)


@pytest.mark.parametrize("change", [{"image_key": "webp"}, {"caption_key": {"caption": 1.0}}, {"label_key": "label"}])
def test_a_cursor_knows_which_fields_are_read(config, shards, change):
    with Pipeline(config(), global_batch_size=4) as pipeline:
        cursor = pipeline.cursor()
    other = SourceConfig(format="tfrecord", shards=shards, **change)
    with (
        Pipeline(DataConfig(**{**vars(config()), "sources": (other,)}), global_batch_size=4) as pipeline,
        pytest.raises(ValueError, match=r"fields was \['auto', 'auto', None\] and is"),
    ):
        pipeline.seek(cursor)


@pytest.mark.parametrize("num_streams", [1, 2])
def test_a_seek_opens_one_block_at_most(tmp_path, examples, config, monkeypatch, num_streams):
    for shard in range(20):
        write_examples(tmp_path / f"{shard:02d}.records", examples(shard * 8, shard * 8 + 8))
    opened, open_shard = [], preparer.IndexedShard
    monkeypatch.setattr(preparer, "IndexedShard", lambda *args, **kw: opened.append(args) or open_shard(*args, **kw))
    options = {"block_shards": 4, "num_streams": num_streams, "prefetch": 1, "num_threads": 1}
    for position in (0, 4, 72, 140):  # none of them at the end of a block
        with Pipeline(config(str(tmp_path / "*.records"), **options), global_batch_size=2) as pipeline:
            pipeline.seek({**pipeline.cursor(), "position": position})
            opened.clear()
            pipeline._executor.start(pipeline._schedule.shapes[0], [position, position + 1]).future.result()
            # A stream that begins within a shard takes a part of one more.
            assert 1 <= len(opened) <= 4 + num_streams - 1


def test_a_seed_of_numpy_is_a_number(config):
    with Pipeline(config(seed=np.int64(3)), global_batch_size=4) as pipeline:
        assert json.loads(json.dumps(pipeline.cursor()))["seed"] == 3
