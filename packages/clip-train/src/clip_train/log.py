"""One stream of metrics to every place that wants it: `jsonl.py`, `dashboards.py` and the console."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import jax

from clip_train.jsonl import Row
from clip_train.optimizers.schedule import Length, check_length

_RATE_OVER = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where metrics go.

    Attributes:
        to: any of `console`, `jsonl`, `tensorboard`, `wandb`; the last two need the extra of that name.
        every: how much training between two plain lines on a console that is no terminal.
        project: the project's name at Weights & Biases.
    """

    to: tuple[Literal["console", "jsonl", "tensorboard", "wandb"], ...] = ("console", "jsonl")
    every: Length = "5%"
    project: str = "clip-train"

    def __post_init__(self) -> None:
        """Refuse what is no length."""
        check_length(self.every, "every")


class Sink(Protocol):
    """One place that rows go to."""

    def write(self, row: Row) -> None:
        """Take the metrics of one step, or more of them for the step that came last."""

    def flush(self) -> None:
        """Have what was written outlive this process and, where it is on a disk, its machine."""

    def close(self) -> None:
        """Let go of files and connections."""


@dataclasses.dataclass
class _Pending:
    row: Row
    metrics: dict[str, jax.Array] | None
    started: float


class MetricsLog:
    """Collects the metrics of each step and hands rows to the sinks once reading them stalls nothing.

    A step's `seconds` are those between the end of the step before, or the asking for its batch if that came later, and
    its own end, as far as the host can see; `images_per_second` and `data_fraction`, the share of the time that went
    into waiting for a batch, are over the last ten steps.

    Args:
        sinks: where rows go.
        global_batch_size: samples in a step.
        first_step: updates already made.
        gauges: gives what else belongs to a row, from its `images_per_second`.
        skipped: gives the samples that were not used so far, by reason, for `skipped/REASON`.
        lag: steps that may be under way on the device while the host goes on.
    """

    def __init__(
        self,
        sinks: list[Sink],
        *,
        global_batch_size: int,
        first_step: int = 0,
        gauges: Callable[[float], Mapping[str, float]] = lambda _: {},
        skipped: Callable[[], Mapping[str, int]] = dict,
        lag: int = 2,
    ) -> None:
        self._sinks = sinks
        self._step = first_step
        self._global_batch_size = global_batch_size
        self._gauges, self._skipped = gauges, skipped
        self._lag = lag
        self._pending: collections.deque[_Pending] = collections.deque()
        self._last_end = 0.0
        self._recent: collections.deque[tuple[float, float]] = collections.deque(maxlen=_RATE_OVER)
        self._compiled = False

    def push(self, step: int, metrics: dict[str, jax.Array], *, started: float, data_seconds: float) -> None:
        """Take a step's metrics as they are on the device; block only on those of `lag` steps ago.

        Args:
            step: updates made.
            metrics: scalars.
            started: `time.perf_counter()` when the step's batch was asked for.
            data_seconds: how long the batch took to come.
        """
        self._step = step
        row: Row = {"step": step, "samples": step * self._global_batch_size, "data_seconds": data_seconds}
        # Now, and not when the row is written: later batches may have come by then, or not.
        row |= {f"skipped/{reason}": count for reason, count in self._skipped().items()}
        self._pending.append(_Pending(row, metrics, started))
        while len(self._pending) > self._lag:
            self._write(self._pending.popleft())

    def add(self, values: dict[str, float]) -> None:
        """Add values to the newest step's row, written or not, such as the results of an evaluation."""
        if self._pending:
            self._pending[-1].row.update(values)
        else:
            for sink in self._sinks:
                sink.write({"step": self._step, **values})

    def settle(self) -> None:
        """Wait for all steps under way, so that what is done next is not counted as theirs."""
        for pending in self._pending:
            self._read(pending)

    def flush(self) -> None:
        """Write all rows, for good: a crash after it finds them."""
        self._write_all()
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Write all rows and close the sinks."""
        self._write_all()
        for sink in self._sinks:
            sink.close()

    def _write_all(self) -> None:
        while self._pending:
            self._write(self._pending.popleft())

    def _read(self, pending: _Pending) -> None:
        if pending.metrics is None:
            return
        pending.row |= {name: value.item() for name, value in jax.device_get(pending.metrics).items()}
        pending.metrics = None
        end = time.perf_counter()
        seconds = end - max(self._last_end, pending.started)
        self._last_end = end
        self._recent.append((seconds, pending.row["data_seconds"]))
        over, waiting = map(sum, zip(*self._recent, strict=True))
        rate = self._global_batch_size * len(self._recent) / over
        pending.row |= {"seconds": seconds, "images_per_second": rate, "data_fraction": min(waiting / over, 1.0)}
        pending.row |= self._gauges(rate)
        if not self._compiled:
            # The first step holds the compilation: it says nothing of the speed of the others.
            self._recent.clear()
            self._compiled = True

    def _write(self, pending: _Pending) -> None:
        self._read(pending)
        for sink in self._sinks:
            sink.write(pending.row)
