"""What the step reads of each batch, on the mesh; and where the data stood after it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from clip_data import Batch, Pipeline
from clip_sharding import to_global
from clip_train.inputs import image_arrays, stored_arrays
from clip_train.teacher import TaughtBatches

# The batch of the step made last, and one that is not used: somebody asked the run to stop.
_REMEMBERED = 2


class GlobalBatches:
    """The batches of a run: each as the step reads it, with a teacher's embeddings where there is one.

    Args:
        pipeline: at the position of `first_step`.
        mesh: the devices.
        teacher: to learn from.
        first_step: updates already made.
        remember: told of each step and the keys of its batch.
        repeat_first: give the first batch again and again.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        mesh: Mesh,
        *,
        teacher: TaughtBatches | None = None,
        first_step: int = 0,
        remember: Callable[[int, Sequence[str]], None] | None = None,
        repeat_first: bool = False,
    ) -> None:
        self._pipeline, self._mesh, self._teacher, self._remember = pipeline, mesh, teacher, remember
        self._step, self._cursors = first_step, Cursors(pipeline.cursor)
        self._repeats = repeat_first
        self._first: Batch | None = None

    def __iter__(self) -> GlobalBatches:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        batch = next(self._pipeline) if self._first is None else self._first
        if self._repeats:
            self._first = batch
        step = self._step + 1
        if self._remember is not None:
            self._remember(step, batch.key)
        arrays = to_global(step_inputs(batch), self._mesh)
        taught = arrays if self._teacher is None else self._teacher(arrays)
        self._cursors.note(step)
        self._step = step
        return taught

    def cursor(self, step: int) -> dict[str, Any]:
        """The position in the data after the batch of a step, the last one that was made."""
        return self._cursors.at(step)


class Cursors:
    """Where the data stood after the batch of each of the last steps.

    A run may be interrupted while it waits for a batch, or when one has come and is not used: it comes again.

    Args:
        cursor: gives the position after the batch that came last.
    """

    def __init__(self, cursor: Callable[[], dict[str, Any]]) -> None:
        self._cursor = cursor
        self._of_steps: collections.OrderedDict[int, dict[str, Any]] = collections.OrderedDict()

    def note(self, step: int) -> None:
        """Remember it as that of a step.

        Of several processes none is interrupted while it waits, and what they lost is added up when it is asked for.
        """
        if jax.process_count() == 1:
            self._of_steps[step] = self._cursor()
            while len(self._of_steps) > _REMEMBERED:
                self._of_steps.popitem(last=False)

    def at(self, step: int) -> dict[str, Any]:
        """The position after the batch of a step, the last one that was made."""
        return self._of_steps[step] if step in self._of_steps else self._cursor()


def step_inputs(batch: Batch) -> dict[str, Any]:
    """What objective and teacher read: the pictures' arrays, `input_ids` and `attention_mask` int32, stored vectors."""
    texts = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return {**image_arrays(batch), **texts, **stored_arrays(batch)}
