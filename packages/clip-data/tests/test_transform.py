import dataclasses
import functools
import itertools

import pytest

from clip_data import DataConfig, Pipeline


def shout(record):
    return dataclasses.replace(record, caption=record.caption.upper()) if record.label % 2 else None


def test_a_transform_replaces_and_drops(config):
    with Pipeline(config(transform=shout), global_batch_size=12) as pipeline:
        batches = list(itertools.islice(pipeline, 4))
        assert all(label % 2 for batch in batches for label in batch.label)
        assert batches[0].caption[0] == f"A PHOTO OF NUMBER {batches[0].label[0]}"
        assert (pipeline.faults, pipeline.skipped.keys()) == ({}, {"filtered"})


def test_a_cursor_knows_its_transform(config):
    with Pipeline(config(transform=shout), global_batch_size=4) as pipeline:
        cursor = pipeline.cursor()
        assert cursor["transform"].endswith("test_transform.shout")
    with (
        Pipeline(config(), global_batch_size=4) as pipeline,
        pytest.raises(ValueError, match=r"transform was '.*shout' and is ''"),
    ):
        pipeline.seek(cursor)
    part = functools.partial(shout)
    part.identity = "shout 2"
    with Pipeline(config(transform=part), global_batch_size=4) as pipeline:
        assert pipeline.cursor()["transform"] == "shout 2"


@pytest.mark.parametrize("nameless", [lambda record: record, functools.partial(shout)])
def test_a_transform_needs_an_identity(config, nameless):
    with pytest.raises(ValueError, match="by which a cursor knows it"):
        DataConfig(**{**vars(config()), "transform": nameless})


def test_a_transform_returns_a_record(config):
    with (
        Pipeline(config(transform=vars), global_batch_size=4) as pipeline,
        pytest.raises(TypeError, match="must return a Record or None, not dict"),
    ):
        next(pipeline)
