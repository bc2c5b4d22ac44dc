"""Atomic checkpoints of a run: parameters, optimizer state, step and the position in the data."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_data.buckets import REMOTE
from clip_sharding import exchange
from clip_train.bucket_steps import BucketSteps
from clip_train.causes import unreadable
from clip_train.directory_steps import DirectorySteps
from clip_train.seal import check_seal, seal
from clip_train.state import TrainState, merge, select


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written, besides at every end.

    Attributes:
        every_minutes: at the first step after this much time; `None` never.
        every_steps: at every multiple of this many steps; `None` never.
        keep: how many of the newest stay.
    """

    every_minutes: float | None = 15.0
    every_steps: int | None = None
    keep: int = 3

    def __post_init__(self) -> None:
        """Refuse cadences and counts that are not above 0."""
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not None and value <= 0:
                raise ValueError(f"{field.name} is above 0; got {value}")


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
        step: updates made.
        state: all of it.
        cursor: the position in the data.
        torn: steps of newer checkpoints, which cannot be read.
    """

    step: int
    state: TrainState
    cursor: dict[str, Any]
    torn: tuple[int, ...]


class Checkpoints:
    """The checkpoints in one directory; close it, or use it as a context manager.

    A checkpoint appears whole or not at all. Writing goes on in the background while training does. Several processes
    each write and read their own parts: the directory is one that all see, and all call the same methods.

    Args:
        directory: a local path, `gs://` or `s3://`.
        keep: how many of the newest stay.
        say: told of a checkpoint that could not be written, when the next is due; without it that is an error.
        read_only: only read what there is, while another process may write. Otherwise what a start that was cut off
            left half written is removed.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        say: Callable[[str], None] | None = None,
        read_only: bool = False,
    ) -> None:
        self._place, self._say, self._read_only = str(directory), say, read_only
        self._under_way: int | None = None
        self._store: DirectorySteps | BucketSteps
        if self._place.startswith(REMOTE):
            self._store = BucketSteps(
                self._place,
                keep=keep,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                start=exchange(uuid.uuid4().hex[:8])[0],
            )
        else:
            self._store = DirectorySteps(directory, keep=keep, read_only=read_only)
        self._steps = self._steps_now()

    def _steps_now(self) -> set[int]:
        """The steps that are whole: one list for all processes, as one may see what another sees a moment later."""
        return set(exchange(self._store.steps())[0])

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or `None`."""
        return max(self._steps, default=None)

    def save(
        self, step: int, state: TrainState, cursor: dict[str, Any], *, before: Callable[[], None] = lambda: None
    ) -> None:
        """Start writing the state after `step` updates; returns once the state may be donated.

        Where the one before could not be written, that is said, if somebody listens, and this one is tried.

        Args:
            step: updates made; a step that is already saved is left as it is.
            state: what to save.
            cursor: the position in the data after the batch of update `step`, as JSON values.
            before: in a bucket, called in the background before the checkpoint counts.

        Raises:
            OSError: the one before, or this one, could not be written.
        """
        try:
            self.wait()
        except OSError as error:
            if self._say is None:
                raise
            self._say(f"{error} Training goes on; the next one is due as configured.")
        if step in self._steps:
            return
        trees = {"params": state.params, "opt_state": state.opt_state}
        if state.ema is not None:
            trees["ema"] = state.ema
        self._under_way = step
        with self._explained():
            self._store.save(step, trees, seal(step, cursor, state), before=before)

    def restore(self, abstract: TrainState, *, step: int | None = None) -> Restored:
        """The newest checkpoint that is whole, each array in its sharding.

        Newer ones, which a fault of the disk has torn, are moved to `torn/` beside the directory, or count no longer in
        a bucket: the run will come by their steps again.

        Args:
            abstract: shapes, dtypes and shardings, from `abstract_state`.
            step: this one and no other.

        Raises:
            FileNotFoundError: there is none.
            ValueError: none is whole and fits.
            OSError: it cannot be read, for a reason that says nothing of it; nothing is moved.
        """
        wanted = {"params": abstract.params, "opt_state": abstract.opt_state}
        if abstract.ema is not None:
            wanted["ema"] = abstract.ema
        step, restored, torn = self._newest(wanted, step)
        if not self._read_only:
            self._steps.difference_update(torn)
            self._store.put_aside(torn, newest=step)
        count = np.asarray(step, abstract.step.dtype)
        placed = jax.make_array_from_callback((), abstract.step.sharding, lambda _: count)
        state = TrainState(
            step=placed, params=restored["params"], opt_state=restored["opt_state"], ema=restored.get("ema")
        )
        return Restored(step=step, state=state, cursor=restored["progress"]["cursor"], torn=torn)

    def restore_params(self, abstract: Any, *, averaged: Any = None) -> tuple[int, Any]:
        """The step, and the parameters alone, of the newest checkpoint that can be read.

        Args:
            abstract: a tree of `jax.ShapeDtypeStruct`.
            averaged: a tree of bools: which of them to take as their moving averages.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: none is whole and fits.
            OSError: it cannot be read, for a reason that says nothing of it.
        """
        wanted = {"params": abstract}
        if averaged is not None:
            wanted["ema"] = select(abstract, averaged)
        step, restored, _ = self._newest(wanted)
        return step, restored["params"] if averaged is None else merge(restored["ema"], restored["params"])

    def _newest(self, wanted: dict[str, Any], only: int | None = None) -> tuple[int, Any, tuple[int, ...]]:
        """The newest step that all processes can read, or the only one, what it holds, and the newer ones."""
        first_error: Exception | None = None
        torn: list[int] = []
        self._steps = self._steps_now()
        for step in sorted(self._steps, reverse=True):
            if only not in (None, step):
                continue
            restored, fault = _tried(lambda step=step: self._store.read(step, wanted))
            if all(exchange(fault is None)):
                _, fault = _tried(lambda step=step, restored=restored: check_seal(step, restored))
                if all(exchange(fault is None)):
                    return step, restored, tuple(torn)
            if any(exchange(fault is not None and unreadable(fault))):
                raise OSError(
                    f"the checkpoint of step {step} in {self._place} cannot be read now: {_first_line(fault)}. It may "
                    "be whole, and stays where it is. Start again once it can be read, or move it away to use the one "
                    "before"
                ) from fault
            first_error = first_error or fault
            torn.append(step)
        if not torn:
            there = ", ".join(map(str, sorted(self._steps)))
            which = f" of step {only}" if only is not None else ""
            raise FileNotFoundError(
                f"no checkpoint{which} in {self._place}" + (f"; there are those of steps {there}" if there else "")
            )
        raise ValueError(
            f"no checkpoint in {self._place} fits this run and can be read; of step {torn[0]}: "
            f"{_first_line(first_error)}"
        ) from first_error

    def wait(self) -> None:
        """Return once all that was started is on disk, or in the bucket.

        Raises:
            OSError: it could not be written.
        """
        with self._explained():
            self._store.wait()
        if self._under_way is not None:
            self._steps.add(self._under_way)
        self._under_way = None

    def close(self) -> None:
        """Wait, then release the directory."""
        self._store.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What one of several processes failed in, the others may never come to: closing would wait for them.
        if kind is None or jax.process_count() == 1:
            self.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Make of whatever a failed write says, in any of the processes, one error in all, and forget the step."""
        fault: Exception | None = None
        try:
            yield
        except Exception as error:  # of several libraries and file systems
            fault = error
        faults = exchange(None if fault is None else _first_line(fault))
        if not any(faults):
            return
        step, self._under_way = self._under_way, None
        self._store.forget(step)
        raise OSError(
            f"The checkpoint of step {step} could not be written to {self._place}: {next(filter(None, faults))}. "
            "Those before it are whole."
        ) from fault


def _tried(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call gives, or what it raises."""
    try:
        return call(), None
    except Exception as error:  # a torn file may make its reader say anything
        return None, error


def _first_line(error: BaseException | None) -> str:
    """What an error says first, or what the one says that it was made of."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__
