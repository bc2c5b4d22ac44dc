"""What somebody should hear of a run's steps: bad ones, which are kept with their batches, and an absurd first loss."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from clip_sharding import exchange
from clip_train.guard import NOT_FINITE, OK, GuardConfig
from clip_train.jsonl import Jsonl, Row, iterate_jsonl
from clip_train.processes import is_first

Say = Callable[[str], None]

# Steps whose batches are remembered: more than are ever under way on the device.
_REMEMBERED = 16
# Skipped steps on end after which no further batch will help.
_HOPELESS = 20
_GO_BACK = (
    'To go back instead, begin another run at an earlier checkpoint, {"branch": {"run": …, "step": …}} in its config, '
    "with a lower learning rate, a longer warm-up or a smaller clip_norm"
)


class BadStepError(RuntimeError):
    """A step that ends the run, as `GuardConfig` says."""


class Watch:
    """A sink of metrics that looks at them.

    Args:
        config: what is done about a bad step.
        path: where bad steps are written, one JSON object a line: step, loss, norms, and the keys of the batch. Those
            after `first_step` that an earlier start left are dropped: the run comes by them again.
        first_step: updates already made.
        first_loss: gives what is wrong with the losses of the run's first step.
        say: prints a warning.
        gather: from the keys of this process's rows to those of all processes.
    """

    def __init__(
        self,
        config: GuardConfig,
        path: Path,
        *,
        first_step: int = 0,
        first_loss: Callable[[Row], Iterable[str]] = lambda _: (),
        say: Say,
        gather: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self._config, self._path, self._say, self._gather = config, path, say, gather
        self._first_loss = first_loss if first_step == 0 else None
        self._stopped = False
        self._keys: collections.OrderedDict[int, Sequence[str]] = collections.OrderedDict()
        self._bad = Jsonl(path, first_step=first_step) if is_first() else None
        self._in_a_row = exchange(_skipped_until(first_step, path))[0]

    def remember(self, step: int, keys: Sequence[str]) -> None:
        """Keep the keys of a step's batch until its metrics are read."""
        self._keys[step] = keys
        while len(self._keys) > _REMEMBERED:
            self._keys.popitem(last=False)

    def write(self, row: Row) -> None:
        """Look at a step.

        Raises:
            BadStepError: it ends the run.
        """
        if "loss" not in row:
            return
        if self._first_loss is not None:
            for found in self._first_loss(row):
                self._say(found)
            self._first_loss = None
        verdict = int(row.get("verdict", OK))
        self._in_a_row = self._in_a_row + 1 if verdict == NOT_FINITE else 0
        if verdict == OK or row["step"] not in self._keys:
            return
        action = self._config.action(verdict)
        what = _what(row, verdict)
        if self._stopped:
            return  # these steps were under way when the run had already ended
        written = {name: value for name, value in row.items() if "loss" in name or "norm" in name}
        keys = self._gather(list(self._keys.pop(row["step"])))
        if self._bad is not None:
            bad = {"step": row["step"], "reason": what, "verdict": verdict, "action": action}
            self._bad.write({**bad, **written, "keys": keys})
        if self._in_a_row == _HOPELESS:
            self._stopped = True
            raise BadStepError(
                f"Steps {row['step'] - _HOPELESS + 1} to {row['step']} were all skipped ({what}): the weights are at "
                f"fault, not the batches. {_GO_BACK}"
            )
        message = f"Step {row['step']}: {what}; its batch's keys are in {self._path}."
        if action == "stop":
            self._stopped = True
            raise BadStepError(
                f"{message} The update was not made. Start again with --set guard.not_finite=skip or guard.spike=skip "
                f"to leave such batches out. {_GO_BACK}"
            )
        self._say(f"{message} {'The update was not made.' if action == 'skip' else 'The update was made.'}")

    def flush(self) -> None:
        """Have the bad steps on the disk."""
        if self._bad is not None:
            self._bad.flush()

    def close(self) -> None:
        """Close the file."""
        if self._bad is not None:
            self._bad.close()


def _skipped_until(step: int, path: Path) -> int:
    """How many updates on end, up to this step, were not made for what was not finite."""
    skipped = {row["step"] for row in iterate_jsonl(path) if row.get("verdict") == NOT_FINITE}
    first = step
    while first in skipped:
        first -= 1
    return step - first


def _what(row: Row, verdict: int) -> str:
    if verdict != NOT_FINITE:
        return f"the loss, {row['loss']:.4g}, is a jump"
    parts = [name.removeprefix("grad_norm/") for name, value in row.items() if name.startswith("grad_norm/")]
    bad = [part for part in parts if not math.isfinite(row[f"grad_norm/{part}"])]
    if not math.isfinite(row["loss"]):
        return f"the loss is {row['loss']}" + (f", and the gradient of {', '.join(bad)} is not finite" if bad else "")
    if not bad and math.isfinite(row["grad_norm"]):
        return f"the optimizer's update is not finite, at a loss of {row['loss']:.4g} and finite gradients"
    return f"the gradient of {', '.join(bad) or 'the parameters'} is not finite, at a loss of {row['loss']:.4g}"
