"""A trace of some steps by jax's profiler, for xprof and for Perfetto."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from clip_train.objective import Metrics
from clip_train.state import TrainState
from clip_train.step import Step


@dataclasses.dataclass(frozen=True)
class Steps:
    """Some steps of a run.

    Attributes:
        first: from 1.
        last: the last of them.
    """

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Steps:
        """Read `"10:20"`: steps 10 to 20, both of them too.

        Raises:
            ValueError: it is nothing of the kind.

        Example:
            >>> Steps.parse("10:20")
            Steps(first=10, last=20)
        """
        first, colon, last = text.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ValueError(f"steps are FIRST:LAST, such as 10:20, counted from 1; got {text!r}")
        return cls(int(first), int(last))


class Trace:
    """Traces steps of a run, or those of them that are still to come where it is continued.

    As a context manager it ends a trace that is under way when the run ends.

    Args:
        directory: for the traces, in which xprof looks (`xprof DIRECTORY`); the `.trace.json.gz` in it opens in
            Perfetto. Every process writes files of its own.
        steps: which.
        first_step: updates already made.
    """

    def __init__(self, directory: Path, steps: Steps, *, first_step: int) -> None:
        self._directory, self._steps, self._done = directory, steps, first_step
        self._under_way = False

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._under_way:
            self._stop()

    def of(self, step: Step) -> Step:
        """The step, traced where it should be."""

        def traced(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            self._done += 1
            if not self._under_way and self._steps.first <= self._done <= self._steps.last:
                jax.block_until_ready(state)  # the steps before are not to be in it
                jax.profiler.start_trace(self._directory)
                self._under_way = True
            if not self._under_way:
                return step(state, batch)
            with jax.profiler.StepTraceAnnotation("train", step_num=self._done):
                state, metrics = step(state, batch)
            if self._done == self._steps.last:
                jax.block_until_ready(state)
                self._stop()
            return state, metrics

        return traced

    def _stop(self) -> None:
        self._under_way = False
        jax.profiler.stop_trace()
