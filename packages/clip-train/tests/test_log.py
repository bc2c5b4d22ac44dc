import time

import jax.numpy as jnp
import pytest

from clip_train.log import Jsonl, MetricsLog, read_jsonl


def push(log, *steps):
    for step in steps:
        log.push(step, {"loss": jnp.float32(step)}, started=time.perf_counter(), data_seconds=0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def open_log(path, first_step=0):
    return MetricsLog([Jsonl(path, first_step=first_step)], global_batch_size=4, first_step=first_step)


def test_rows_come_late_and_settling_writes_none(path):
    log = open_log(path)
    push(log, 1, 2, 3)
    log.settle()
    assert [row["step"] for row in read_jsonl(path)] == [1]
    log.flush()
    assert [(row["step"], row["loss"], row["samples"]) for row in read_jsonl(path)] == [
        (1, 1, 4),
        (2, 2, 8),
        (3, 3, 12),
    ]
    log.close()


def test_what_happens_between_steps_is_not_counted_as_theirs(path):
    log = open_log(path)
    push(log, 1, 2)
    log.settle()
    time.sleep(1.0)
    push(log, 3)
    log.close()
    assert max(row["seconds"] for row in read_jsonl(path)) < 1.0


@pytest.mark.parametrize("flushed", [False, True])
def test_values_are_added_to_the_newest_row_written_or_not(path, flushed):
    log = open_log(path)
    push(log, 1, 2)
    if flushed:
        log.flush()
    log.add({"acc1": 0.5})
    log.add({"acc5": 0.75})
    push(log, 3)
    log.close()
    rows = read_jsonl(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (rows[1]["acc1"], rows[1]["acc5"], rows[1]["loss"]) == (0.5, 0.75, 2)
    assert ["acc1" in row for row in rows] == [False, True, False]


def test_a_continued_run_drops_the_rows_after_its_checkpoint_and_a_torn_line(path):
    log = open_log(path)
    push(log, 1, 2, 3, 4)
    log.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    log = open_log(path, first_step=2)
    log.add({"acc1": 1.0})
    push(log, 3)
    log.close()
    assert [(row["step"], row.get("acc1")) for row in read_jsonl(path)] == [(1, None), (2, 1.0), (3, None)]
