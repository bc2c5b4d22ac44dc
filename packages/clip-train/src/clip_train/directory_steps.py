"""Checkpoints in a directory that all processes see, through Orbax: a folder for each step, renamed when whole."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from clip_sharding import exchange


class DirectorySteps:
    """The checkpoints in one directory. Every process writes and reads its own parts, and all call the same methods.

    Args:
        directory: a local path.
        keep: how many of the newest stay.
        read_only: only read what there is, while another process may write. Otherwise what a start that was cut off
            left half written is removed.
    """

    def __init__(self, directory: str | Path, *, keep: int, read_only: bool) -> None:
        import orbax.checkpoint as ocp

        # Orbax reports each save, and each failure several times; the run itself says what matters.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "opt_state": ocp.StandardCheckpointHandler(),
                "ema": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """The steps that are whole, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, trees: Mapping[str, Any], progress: Any, *, before: Callable[[], None]) -> None:
        """Start to write; returns once the arrays may be donated.

        Args:
            step: updates made.
            trees: of global arrays.
            progress: JSON values, the same in all processes.
            before: not called: what else a run writes is there already.
        """
        items: dict[str, Any] = {name: self._args.StandardSave(tree) for name, tree in trees.items()}
        items["progress"] = self._args.JsonSave(progress)
        self._manager.save(step, args=self._args.Composite(**items), force=True)

    def wait(self) -> None:
        """Return once what was started is on disk."""
        self._manager.wait_until_finished()

    def read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What a step holds, and its `progress`; a torn file may make it raise anything.

        Args:
            step: a whole one.
            wanted: trees of shapes, dtypes and shardings. Of the optimizer's state the number of rows may be another.
        """
        # On other devices another number of Shampoo's blocks fills up; the seal makes sure that nothing else differs.
        items: dict[str, Any] = {
            name: self._args.StandardRestore(tree, strict=name != "opt_state") for name, tree in wanted.items()
        }
        items["progress"] = self._args.JsonRestore()
        restored = self._manager.restore(step, args=self._args.Composite(**items))
        return {name: restored[name] for name in items}

    def put_aside(self, steps: Iterable[int], *, newest: int) -> None:
        """Move steps to `torn/` beside the directory; all are newer than the newest that is whole."""
        directory = Path(self._manager.directory)
        steps = list(steps)
        for step in steps if jax.process_index() == 0 else ():
            aside = directory.parent / "torn" / f"{step}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(aside)
        if steps:
            exchange(None)
            self._manager.reload()

    def forget(self, step: int | None) -> None:
        """Have what is on disk be all that is known: no half of a step, and each one that was to be removed for it."""
        if jax.process_index() == 0:
            for left in Path(self._manager.directory).glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        self._manager.reload()

    def close(self) -> None:
        """Wait, then release the directory."""
        self._manager.close()
