"""Atomic checkpoints of a run: parameters, optimizer state, step and the position in the data, through Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_data.buckets import REMOTE
from clip_sharding import exchange
from clip_train.bucket_steps import BucketSteps
from clip_train.causes import unreadable
from clip_train.room import Room
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

    A checkpoint appears whole or not at all: it is written beside its final name and renamed. Writing goes on in the
    background while training does. Several processes each write and read their own parts: the directory is one that all
    see, and all call the same methods.

    In a bucket, `gs://` or `s3://`, a checkpoint counts once the files of all processes are there. Each process writes
    its parts to its machine's disk first, and fetches a whole checkpoint to there: to `TMPDIR`, which needs room for
    two.

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
        import orbax.checkpoint as ocp

        # Orbax reports each save, and each failure several times; the run itself says what matters.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._args = ocp.args
        self._say, self._read_only = say, read_only
        self._under_way: int | None = None
        self._place, self._keep = str(directory), keep
        self._bucket: BucketSteps | None = None
        self._background = ThreadPoolExecutor(1, "clip-train-upload")
        self._sent: Future[None] | None = None
        local = Path(directory).absolute()
        if self._place.startswith(REMOTE):
            start, found = exchange([uuid.uuid4().hex[:8], BucketSteps(self._place).whole()])[0]
            self._in_bucket, self._fetched = set(found), set[int]()
            self._bucket = BucketSteps(
                self._place, process_index=jax.process_index(), process_count=jax.process_count(), start=start
            )
            self._room = Room(self._place)
            local, keep = self._room.path, 1
        # On disks of their own all processes are primary, and files that hold a part of one array each are apart.
        primary = ocp.options.MultiprocessingOptions(primary_host=None if self._bucket else 0)

        def arrays() -> ocp.StandardCheckpointHandler:
            return ocp.StandardCheckpointHandler(multiprocessing_options=primary, use_ocdbt=self._bucket is None)

        self._manager = ocp.CheckpointManager(
            local,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=primary,
            ),
            item_handlers={
                "params": arrays(),
                "opt_state": arrays(),
                "ema": arrays(),
                "progress": ocp.JsonCheckpointHandler(multiprocessing_options=primary),
            },
        )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or `None`."""
        return max(self._all_steps(), default=None)

    def _all_steps(self) -> set[int]:
        return set(self._manager.all_steps()) if self._bucket is None else self._in_bucket

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
        if step in self._all_steps():
            return
        items = self._args.Composite(
            params=self._args.StandardSave(state.params),
            opt_state=self._args.StandardSave(state.opt_state),
            **({} if state.ema is None else {"ema": self._args.StandardSave(state.ema)}),
            progress=self._args.JsonSave(seal(step, cursor, state)),
        )
        self._under_way = step
        with self._explained():
            if step not in self._manager.all_steps():  # as after an upload that failed
                self._manager.save(step, args=items, force=True)
        if self._bucket is not None:
            self._sent = self._background.submit(self._send, self._bucket, step, before)

    def _send(self, bucket: BucketSteps, step: int, before: Callable[[], None]) -> None:
        self._manager.wait_until_finished()
        before()
        folder = self._room.path / str(step)
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        bucket.put(step, folder, files)
        self._in_bucket.add(step)
        bucket.prune(self._keep)

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
        items = self._args.Composite(
            params=self._args.StandardRestore(abstract.params),
            # On other devices another number of blocks fills up; the seal makes sure that nothing else differs.
            opt_state=self._args.StandardRestore(abstract.opt_state, strict=False),
            **({} if abstract.ema is None else {"ema": self._args.StandardRestore(abstract.ema)}),
            progress=self._args.JsonRestore(),
        )
        step, restored, torn = self._newest(items, step)
        if not self._read_only:
            self._put_aside(torn, step)
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
        items = self._args.Composite(
            params=self._args.StandardRestore(abstract),
            **({} if averaged is None else {"ema": self._args.StandardRestore(select(abstract, averaged))}),
            progress=self._args.JsonRestore(),
        )
        step, restored, _ = self._newest(items)
        return step, restored["params"] if averaged is None else merge(restored["ema"], restored["params"])

    def _newest(self, items: Any, wanted: int | None = None) -> tuple[int, Any, tuple[int, ...]]:
        """The newest step that all processes can read, or the wanted one, what it holds, and the newer ones."""
        first_error: Exception | None = None
        torn: list[int] = []
        for step in sorted(self._all_steps(), reverse=True):
            if wanted not in (None, step):
                continue
            restored, fault = None, self._fetch(step)
            if all(exchange(fault is None)):
                restored, fault = self._read(step, items)
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
            there = ", ".join(map(str, sorted(self._all_steps())))
            which = f" of step {wanted}" if wanted is not None else ""
            raise FileNotFoundError(
                f"no checkpoint{which} in {self._place}" + (f"; there are those of steps {there}" if there else "")
            )
        raise ValueError(
            f"no checkpoint in {self._place} fits this run and can be read; of step {torn[0]}: "
            f"{_first_line(first_error)}"
        ) from first_error

    def _fetch(self, step: int) -> ValueError | None:
        """Have a step of a bucket on this machine's disk, or say why it is torn.

        Raises:
            OSError: the bucket cannot be read, which says nothing of the step.
        """
        if self._bucket is None or step in self._fetched:
            return None
        folder = Path(self._manager.directory) / str(step)
        shutil.rmtree(folder, ignore_errors=True)  # this process's part alone
        try:
            self._bucket.get(step, beside := folder.with_suffix(".partial"))
        except ValueError as error:
            return error
        beside.rename(folder)
        self._fetched.add(step)
        self._manager.reload()
        return None

    def _read(self, step: int, items: Any) -> tuple[Any, Exception | None]:
        """What a step holds, or why it is torn."""
        try:
            restored = self._manager.restore(step, args=items)
            check_seal(step, restored)
        except Exception as error:  # a torn file may make its reader say anything
            return None, error
        return restored, None

    def _put_aside(self, steps: tuple[int, ...], newest: int) -> None:
        directory = Path(self._manager.directory)
        if self._bucket is not None:
            self._in_bucket.difference_update(steps)
        if self._bucket is not None and jax.process_index() == 0:
            self._bucket.forget_after(newest)
        for step in steps:
            if (folder := directory / str(step)).exists() and (self._bucket is not None or jax.process_index() == 0):
                aside = directory.parent / "torn" / f"{step}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
        if steps:
            exchange(None)
            self._manager.reload()

    def wait(self) -> None:
        """Return once all that was started is on disk, or in the bucket.

        Raises:
            OSError: it could not be written.
        """
        with self._explained():
            if self._sent is not None:
                sent, self._sent = self._sent, None
                sent.result()
            self._manager.wait_until_finished()
        self._under_way = None

    def close(self) -> None:
        """Wait, then release the directory."""
        self._background.shutdown()
        self._manager.close()
        if self._bucket is not None:
            self._room.close()

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
        if self._bucket is None:
            self._forget(step)
        raise OSError(
            f"The checkpoint of step {step} could not be written to {self._place}: {next(filter(None, faults))}. "
            "Those before it are whole."
        ) from fault

    def _forget(self, step: int | None) -> None:
        """Have what is on disk be all that is known: no half of a step, and each one that was to be removed for it."""
        if jax.process_index() == 0:
            for left in Path(self._manager.directory).glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        self._manager.reload()


def _first_line(error: BaseException | None) -> str:
    """What an error says first, or what the one says that it was made of."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__
