import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from clip_train.dashboards import TensorBoard, Wandb
from clip_train.wandb_files import read_records


def test_tensorboard_has_each_step_once_whatever_kills_the_run(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    killed = f"""
import os
from pathlib import Path
from clip_train.dashboards import TensorBoard
sink = TensorBoard(Path({str(tmp_path)!r}), first_step=0)
for step in range(4):
    sink.write({{"step": step, "loss": float(step)}})
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    (tmp_path / os.listdir(tmp_path)[0]).rename(tmp_path / "events.out.tfevents.1")  # of another second
    for first_step, name in ((0, "2"), (2, "3")):
        sink = TensorBoard(tmp_path, first_step=first_step)
        for step in range(first_step and first_step + 1, 4):
            sink.write({"step": step, "loss": step + 0.5, "colours/acc1": 1.0})
        sink.close()
        (written,) = set(os.listdir(tmp_path)) - {f"events.out.tfevents.{n}" for n in "123"}
        (tmp_path / written).rename(tmp_path / f"events.out.tfevents.{name}")
    shown = []  # as TensorBoard reads them: a start voids what is not before its step
    for file in sorted(tmp_path.iterdir()):
        for event in (event_pb2.Event.FromString(record) for record in events(file)):
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = [value for value in shown if value[0] < event.step]
            shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    assert [(step, value) for step, tag, value in shown if tag == "loss"] == [(n, n + 0.5) for n in range(4)]
    assert shown[-1] == (3, "colours/acc1", 1.0)


def events(path):
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def test_wandb_has_each_step_once_through_restarts_in_another_place(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = [{"step": step, "loss": step / 2} for step in range(9)]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    steps_of = {}
    # Checkpoints after steps 0, 2 and 6; the second start was killed before anything of it was on disk. The last one is
    # stopped in an evaluation, which the next start makes.
    for directory, done, last in ((here, 0, 4), (there, 2, 6), (there, 6, 8), (there, 8, 8)):
        if directory is there and here.exists():
            here.rename(there)
        before = set(directory.glob("wandb/offline-run-*"))
        time.sleep(1.01 if before else 0)  # it names a start by its second
        sink = Wandb(
            directory, name="run", project="test", config={"seed": 0}, first_step=done, earlier=rows[1 : done + 1]
        )
        for row in rows[done + 1 : last + 1]:
            sink.write(row)
        sink.write({"step": last, "digits/acc1": 0.25})
        sink.close()
        (made,) = set(directory.glob("wandb/offline-run-*")) - before
        (file,) = made.glob("*.wandb")
        steps_of[done] = wait_for_history(file, last + (done == last))
        if done == 2:
            assert list(steps_of[2]) == [5, 6]
            file.unlink()
    assert file.name == f"run-{(there / 'wandb' / 'run_id').read_text()}.wandb"
    assert list(steps_of[0]) == [1, 2, 3, 4]
    assert list(steps_of[6]) == [5, 6, 7, 8]
    assert steps_of[6][8] == {"loss": "4", "digits/acc1": "0.25"}
    assert steps_of[8] == {9: {"digits/acc1": "0.25"}}


def wait_for_history(file, last):
    """By step the values in a file, once the process that writes it is through."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline, history = time.monotonic() + 30, {}
    while last not in history:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        parsed = [Record.FromString(record).history for record in read_records(file)]
        history = {
            h.step.num: {i.nested_key[0]: i.value_json for i in h.item if i.nested_key[0][0] != "_"}
            for h in parsed
            if h.item
        }
    return history


def test_a_file_that_was_cut_off_is_read_to_there(tmp_path):
    records = [b"a" * 10, b"b" * 40000, b"c" * 25500, b"d"]  # over blocks, and to where no header fits
    data = bytearray(7)
    for record in records:
        rest, first = record, True
        while rest or first:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                room = 32768
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            data += bytes(4) + struct.pack("<HB", len(part), kind) + part
            first = False
    (tmp_path / "run.wandb").write_bytes(data)
    assert list(read_records(tmp_path / "run.wandb")) == records
    (tmp_path / "run.wandb").write_bytes(data[:-1])
    assert list(read_records(tmp_path / "run.wandb")) == records[:-1]
