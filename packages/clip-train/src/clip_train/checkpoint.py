"""Atomic checkpoints of a run: parameters, optimizer state, step and the position in the data, through Orbax."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

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


class Checkpoints:
    """The checkpoints in one directory; close it, or use it as a context manager.

    A checkpoint appears whole or not at all: it is written beside its final name and renamed. Writing goes on in the
    background while training does. Several processes each write and read their own parts: the directory is one that all
    see, and all call the same methods.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3) -> None:
        import orbax.checkpoint as ocp

        # Orbax reports each save at INFO through absl; what matters of it is said by the run itself.
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "opt_state": ocp.StandardCheckpointHandler(),
                "ema": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or `None`."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, cursor: dict[str, Any]) -> None:
        """Start writing the state after `step` updates; returns once the state may be donated.

        Args:
            step: updates made; a step that is already saved is left as it is.
            state: what to save.
            cursor: the position in the data after the batch of update `step`, as JSON values.
        """
        if step in self._manager.all_steps():
            return
        items = self._args.Composite(
            params=self._args.StandardSave(state.params),
            opt_state=self._args.StandardSave(state.opt_state),
            **({} if state.ema is None else {"ema": self._args.StandardSave(state.ema)}),
            progress=self._args.JsonSave({"step": step, "cursor": cursor}),
        )
        self._manager.save(step, args=items)

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint: the state, each array read into its sharding, and the cursor.

        Args:
            abstract: shapes, dtypes and shardings, from `abstract_state`.

        Raises:
            FileNotFoundError: there is none.
        """
        step = self._require_step()
        items = self._args.Composite(
            params=self._args.StandardRestore(abstract.params),
            opt_state=self._args.StandardRestore(abstract.opt_state),
            **({} if abstract.ema is None else {"ema": self._args.StandardRestore(abstract.ema)}),
            progress=self._args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        count = np.asarray(step, abstract.step.dtype)
        placed = jax.make_array_from_callback((), abstract.step.sharding, lambda _: count)
        state = TrainState(
            step=placed, params=restored["params"], opt_state=restored["opt_state"], ema=restored.get("ema")
        )
        return state, restored["progress"]["cursor"]

    def restore_params(self, abstract: Any, *, averaged: Any = None) -> Any:
        """The parameters alone of the newest checkpoint.

        Args:
            abstract: a tree of `jax.ShapeDtypeStruct`.
            averaged: a tree of bools: which of them to take as their moving averages.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        if averaged is None:
            items = self._args.Composite(params=self._args.StandardRestore(abstract))
            return self._manager.restore(self._require_step(), args=items)["params"]
        items = self._args.Composite(
            params=self._args.StandardRestore(abstract), ema=self._args.StandardRestore(select(abstract, averaged))
        )
        restored = self._manager.restore(self._require_step(), args=items)
        return merge(restored["ema"], restored["params"])

    def wait(self) -> None:
        """Return once all that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release the directory."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What one of several processes failed in, the others may never come to: closing would wait for them.
        if kind is None or jax.process_count() == 1:
            self.close()

    def _require_step(self) -> int:
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        return step
