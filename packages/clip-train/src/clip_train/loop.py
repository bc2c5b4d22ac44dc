"""The training loop: batch, step, log, evaluate, save. It knows nothing of what is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from clip_train.agreement import Agreement
from clip_train.state import TrainState
from clip_train.step import Step
from clip_train.stop import Interrupted, Stop


class Log(Protocol):
    """Where `fit` sends what it measures."""

    def push(self, step: int, metrics: dict[str, jax.Array], *, started: float, data_seconds: float) -> None:
        """Take the metrics of a step, still on the device; read them later, when that stalls nothing."""

    def settle(self) -> None:
        """Wait for the steps under way: what follows is no training."""


@dataclasses.dataclass(frozen=True)
class Event:
    """Something done in the course of a run.

    Attributes:
        action: called with the number of updates made and the state; it may raise `Interrupted`.
        every_steps: at each multiple of this many updates.
        every_seconds: at the first update after this much time since the last; of several processes, by the first
            clock that says so, and a few updates later.
    """

    action: Callable[[int, TrainState], None]
    every_steps: int | None = None
    every_seconds: float | None = None


def fit(
    state: TrainState,
    step: Step,
    batches: Iterator[Any],
    *,
    num_steps: int,
    log: Log | None = None,
    first_step: int = 0,
    events: Sequence[Event] = (),
    stop: Stop | None = None,
) -> tuple[TrainState, int]:
    """Train from update `first_step` to `num_steps`.

    Args:
        state: where to start; consumed.
        step: from `make_step`.
        batches: global batches, already on the mesh; one is taken per update, never one ahead, so that a position read
            in an event is that of the batch just used.
        num_steps: updates in the whole run.
        log: told of each update; without one, nothing waits for the device.
        first_step: updates that `state` has seen.
        events: run in this order after the updates at which they are due.
        stop: looked at after each update; of several processes a few updates later, which all agree on. In one
            process the wait for a batch is broken off for it.

    Returns:
        The last state and the number of updates it has seen: fewer than `num_steps` if stopped.
    """
    last_run = [time.monotonic()] * len(events)
    timed = [i for i, event in enumerate(events) if event.every_seconds is not None]
    agreement = Agreement(1 + len(timed)) if stop or timed else None
    done = first_step
    while done < num_steps:
        started = time.perf_counter()
        try:
            with stop.breaks_off() if stop else contextlib.nullcontext():
                batch = next(batches)
        except Interrupted:
            break
        data_seconds = time.perf_counter() - started
        state, metrics = step(state, batch)
        done += 1
        if log is not None:
            log.push(done, metrics, started=started, data_seconds=data_seconds)
        asked, due = 0, set()
        if agreement is not None:
            now = time.monotonic()
            asked, *votes = agreement.cast([_number(stop), *(_is_due(events[i], now - last_run[i]) for i in timed)])
            due = {i for i, vote in zip(timed, votes, strict=True) if vote}
        if stop and asked:
            stop.signal = signal.Signals(asked)
        try:
            for i, event in enumerate(events):
                by_steps = event.every_steps is not None and done % event.every_steps == 0
                if by_steps or i in due:
                    if log is not None:
                        log.settle()
                    event.action(done, state)
                    last_run[i] = time.monotonic()
                    if agreement is not None and i in timed:
                        agreement.forget()
        except Interrupted:
            break
        if asked:
            break
    if log is not None:
        log.settle()
    return state, done


def _number(stop: Stop | None) -> int:
    return int(stop.signal) if stop and stop.signal else 0


def _is_due(event: Event, seconds: float) -> int:
    return int(event.every_seconds is not None and seconds >= event.every_seconds)
