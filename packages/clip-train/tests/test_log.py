import errno
import os
import resource
import time

import jax.numpy as jnp
import pytest

from clip_train.jsonl import Jsonl, read_jsonl
from clip_train.log import MetricsLog


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


def rows_of(path):
    return [row["step"] for row in read_jsonl(path)]


@pytest.fixture
def room(path):
    """Leaves so many bytes on the disk, as far as one file is concerned; `None`: as many as there are."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(size):
        more = limits[0] if size is None else path.stat().st_size + size
        resource.setrlimit(resource.RLIMIT_FSIZE, (more, limits[1]))

    yield leave
    leave(None)


def test_a_row_that_does_not_fit_on_the_disk_is_an_error_and_leaves_no_part(path, room):
    rows = Jsonl(path, first_step=0)
    rows.write({"step": 1, "text": "x" * 60})
    whole = path.read_bytes()
    for row in ({"step": 2, "text": "y" * 60}, {"step": 1, "acc1": 0.5, "acc5": 0.75}):
        room(10)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            rows.write(row)
        assert path.read_bytes() == whole
        room(None)
    rows.write({"step": 1, "acc1": 0.5})
    rows.write({"step": 2})
    assert [row.get("acc1") for row in read_jsonl(path)] == [0.5, None]


def test_a_row_survives_whatever_cuts_off_what_is_added_to_it(path):
    rows = Jsonl(path, first_step=0)
    for step in (1, 2):
        rows.write({"step": step, "loss": 0.5})
    before = path.read_bytes()
    rows.write({"step": 2, "colours/acc1": 0.125, "pairs/acc1": 0.25})
    after = path.read_bytes()
    for size in range(len(before) - 2, len(after)):
        path.write_bytes(after[:size] + before[size:])
        again = Jsonl(path, first_step=2, say=pytest.fail)
        assert again.was_cut_off == (size > len(before) - 2)
        again.write({"step": 3, "loss": 0.25})
        again.close()
        assert [(row["step"], row["loss"]) for row in read_jsonl(path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_lines_that_are_no_rows_are_passed_over_and_their_number_is_told(path):
    lines = [
        b'{"step": 0, "acc1": 0.5}\n',
        b'{"step": 1}\n',
        b'{"step": 2, "lo\x00\xff\n',
        b'{"step": 3}\n',
        b'{"step": 4}\n',
    ]
    path.write_bytes(b"".join(lines))
    assert rows_of(path) == [0, 1, 3, 4]
    said = []
    Jsonl(path, first_step=3, say=said.append).close()
    assert "lacks the rows of 1 of the 3 steps" in said[0]
    assert rows_of(path) == [0, 1, 3]
    Jsonl(path, first_step=0).close()
    assert path.read_bytes() == b""


def test_rows_are_on_the_disk_once_flushed(path, monkeypatch):
    synced = []
    monkeypatch.setattr("clip_train.jsonl.os.fsync", lambda descriptor: synced.append(read_jsonl(path)[-1]["step"]))
    log = open_log(path)
    push(log, 1, 2, 3)
    log.flush()
    assert synced == [3]
    log.close()


def test_what_was_skipped_is_counted_when_the_step_is_made(path):
    skipped = {}
    log = MetricsLog([Jsonl(path, first_step=0)], global_batch_size=4, skipped=lambda: skipped)
    for step in (1, 2, 3, 4):
        skipped["bad_image"] = 10 * step
        push(log, step)
    log.close()
    assert [row["skipped/bad_image"] for row in read_jsonl(path)] == [10, 20, 30, 40]


def test_a_rows_speed_and_wait_for_data_are_over_its_last_steps(path):
    log = MetricsLog([Jsonl(path, first_step=0)], global_batch_size=4, gauges=lambda rate: {"mfu": rate / 1e9})
    for step in (1, 2, 3):
        log.push(step, {"loss": jnp.float32(0)}, started=time.perf_counter(), data_seconds=1e-5 if step < 3 else 100.0)
    log.close()
    rows = read_jsonl(path)
    assert rows[1]["images_per_second"] == pytest.approx(4 / rows[1]["seconds"])
    assert rows[1]["data_fraction"] == pytest.approx(1e-5 / rows[1]["seconds"])
    assert rows[2]["data_fraction"] == 1
    assert rows[2]["mfu"] == rows[2]["images_per_second"] / 1e9
