"""TensorBoard and Weights & Biases as places that rows of metrics go to, whole and once through every restart."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_train.jsonl import Row
from clip_train.wandb_files import last_step


class TensorBoard:
    """Event files that TensorBoard reads. A row is on disk once it is written: a killed run loses none.

    Args:
        directory: where they go; what an earlier start left there of steps after `first_step` is marked as void.
        first_step: updates already made.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        # Not its SummaryWriter, whose rows wait in a queue that its flush does not empty.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), filename_suffix=f".{os.getpid()}")
        messages: Any = event_pb2  # whose classes are made at run time, as are those of the next
        summaries: Any = summary_pb2
        self._event, self._summary = messages.Event, summaries.Summary
        # An evaluation before the first step is of step 0.
        void_from = first_step + 1 if first_step else 0
        self._put(void_from, session_log=messages.SessionLog(status=messages.SessionLog.START))

    def write(self, row: Row) -> None:
        """Write every number of the row under its name."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value)) for name, value in row.items() if name != "step"
        ]
        self._put(row["step"], summary=self._summary(value=values))

    def _put(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))
        self._writer.flush()

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """A run at Weights & Biases; `WANDB_MODE=offline` keeps it on this machine, for `wandb sync`.

    Every step is there once, whatever ended earlier starts: what they sent is not sent again, and of the steps before
    the checkpoint what they could not send any more is. Nothing can be added to a step that was sent: an evaluation
    that is only made after a restart comes with the next one.

    Args:
        directory: the run's output directory; the id is kept there, so that a resumed run stays one, moved or not.
        name: of the run.
        project: the project's name.
        config: the resolved config, shown with the run.
        first_step: updates already made.
        earlier: their rows.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        project: str,
        config: dict[str, Any],
        first_step: int = 0,
        earlier: Iterable[Row] = (),
    ) -> None:
        import wandb

        kept = directory / "wandb" / "run_id"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(uuid.uuid4().hex[:12])
        run_id = kept.read_text()
        # Before it starts, which opens another file. Online the server says how far it came, offline the files do.
        written = last_step(directory / "wandb", run_id)
        self._run = wandb.init(project=project, name=name, id=run_id, resume="allow", dir=str(directory), config=config)
        self._sent, self._first_step = max(written, self._run.step - 1), first_step
        self._late: dict[str, Any] = {}
        for row in earlier:
            if row["step"] > self._sent:
                self.write(row)

    def write(self, row: Row) -> None:
        """Send the row, unless an earlier start of the run sent it."""
        values = {name: value for name, value in row.items() if name != "step"}
        if row["step"] > self._sent:
            self._run.log(self._late | values, step=row["step"])
            self._late = {}
        elif row["step"] == self._first_step:
            self._late |= values

    def flush(self) -> None:
        """What is lost of it when the run is killed, its next start sends."""

    def close(self) -> None:
        """End the run."""
        if self._late:
            self._run.log(self._late, step=self._sent + 1)
        self._run.finish()
