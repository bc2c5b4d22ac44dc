"""What somebody should hear of a run while it goes on: bad steps, an absurd first loss, data that do not come."""

from __future__ import annotations

import collections
import errno
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_train.guard import NOT_FINITE, OK, GuardConfig
from clip_train.log import Row, to_line
from clip_train.processes import is_first

Say = Callable[[str], None]

# Steps whose batches are remembered: more than are ever under way on the device.
_REMEMBERED = 16
# Skipped steps on end after which no further batch will help.
_HOPELESS = 20


class BadStepError(RuntimeError):
    """A step that ends the run, as `GuardConfig` says."""


class Watch:
    """A sink of metrics that looks at them.

    Args:
        config: what is done about a bad step.
        path: where bad steps are written, one JSON object a line: step, loss, norms, and the keys of the batch.
        first_loss: gives what is wrong with the loss of the first step, or None.
        say: prints a warning.
        gather: from the keys of this process's rows to those of all processes.
    """

    def __init__(
        self,
        config: GuardConfig,
        path: Path,
        *,
        first_loss: Callable[[float], str | None],
        say: Say,
        gather: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self._config, self._path, self._say, self._gather = config, path, say, gather
        self._first_loss: Callable[[float], str | None] | None = first_loss
        self._stopped, self._in_a_row = False, 0
        self._keys: collections.OrderedDict[int, Sequence[str]] = collections.OrderedDict()

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
            if (found := self._first_loss(row["loss"])) is not None:
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
        if is_first():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(to_line({"step": row["step"], "reason": what, "action": action, **written, "keys": keys}))
        if self._in_a_row == _HOPELESS:
            self._stopped = True
            raise BadStepError(
                f"Steps {row['step'] - _HOPELESS + 1} to {row['step']} were all skipped ({what}): the weights are at "
                "fault, not the batches. Start again from an earlier checkpoint with a lower learning rate"
            )
        message = f"Step {row['step']}: {what}; its batch's keys are in {self._path}."
        if action == "stop":
            self._stopped = True
            raise BadStepError(
                f"{message} The update was not made. Start again with --set guard.not_finite=skip or guard.spike=skip "
                "to leave such batches out; a lower learning rate, a longer warm-up or clip_norm may prevent them"
            )
        self._say(f"{message} {'The update was not made.' if action == 'skip' else 'The update was made.'}")

    def close(self) -> None:
        """Nothing is open."""


def _what(row: Row, verdict: int) -> str:
    if verdict != NOT_FINITE:
        return f"the loss, {row['loss']:.4g}, is a jump"
    parts = [name.removeprefix("grad_norm/") for name, value in row.items() if name.startswith("grad_norm/")]
    bad = [part for part in parts if not math.isfinite(row[f"grad_norm/{part}"])]
    if not math.isfinite(row["loss"]):
        return f"the loss is {row['loss']}" + (f", and the gradient of {', '.join(bad)} is not finite" if bad else "")
    return f"the gradient of {', '.join(bad) or 'the parameters'} is not finite, at a loss of {row['loss']:.4g}"


def absurd_first_loss(loss: float, *, chance: float, pretrained: bool) -> str | None:
    """What is wrong with the loss of a first step, in words.

    Args:
        loss: of it.
        chance: what embeddings that know nothing give.
        pretrained: whether the weights were trained before.

    Example:
        >>> absurd_first_loss(5.6, chance=5.5, pretrained=False) is None
        True
        >>> print(absurd_first_loss(5.6, chance=5.5, pretrained=True))
        The first loss, 5.6, is no better than chance (5.5): these weights do not know these pictures or texts. Check \
that image_size, mean, std and tokenizer are those that they were trained with.
    """
    if not math.isfinite(loss):
        return None  # the guard tells
    if pretrained and loss > 0.95 * chance:
        return (
            f"The first loss, {loss:.3g}, is no better than chance ({chance:.3g}): these weights do not know these "
            "pictures or texts. Check that image_size, mean, std and tokenizer are those that they were trained with."
        )
    if loss > 2 * chance + 1:
        return (
            f"The first loss, {loss:.3g}, is far above chance ({chance:.3g}): look at the initial logit scale and bias."
        )
    return None


def chance_loss(kind: str, *, batch_size: int, vocab_size: int, bias: float = 0.0) -> float:
    """The loss of embeddings that are all orthogonal, or of words that are all alike.

    Args:
        kind: `sigmoid`, `softmax` or `caption`.
        batch_size: pairs that are compared.
        vocab_size: words.
        bias: of the sigmoid loss.

    Example:
        >>> round(chance_loss("softmax", batch_size=256, vocab_size=0), 3)
        5.545
    """
    match kind:
        case "caption":
            return math.log(vocab_size)
        case "softmax":
            return math.log(batch_size)
        case _:
            return _softplus(-bias) + (batch_size - 1) * _softplus(bias)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def watched(
    batches: Iterator[Any], say: Say, *, patience: float = 30.0, share: float = 0.5, window: float = 60.0
) -> Iterator[Any]:
    """Pass batches on, and say when they do not come.

    Args:
        batches: any iterator.
        say: prints a warning; called from another thread while a batch is awaited.
        patience: seconds for one batch before it is said, and again each time as long.
        share: of the time spent waiting, above which it is said once that the device waits for data.
        window: seconds over which that share is taken.
    """
    waited, since, told, is_first = 0.0, time.monotonic(), False, True
    asked: list[float] = []  # since when a batch is awaited, while one is
    ended = threading.Event()
    threading.Thread(target=_tell, args=(asked, ended, say, patience), name="data-watch", daemon=True).start()
    try:
        while True:
            asked.append(time.monotonic())
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                began = asked.pop()
            now = time.monotonic()
            if is_first:  # nothing was there to be prefetched, and the step is not yet compiled
                waited, since, is_first = 0.0, now, False
            else:
                waited += now - began
            if not told and now - since >= window:
                if waited > share * (now - since):
                    say(
                        f"{100 * waited / (now - since):.0f} % of the last {now - since:.0f} s went into waiting for "
                        "data: the step is faster than reading and decoding. More data.num_threads, smaller pictures "
                        "in the shards, or data.augment.source_size may help."
                    )
                    told = True
                waited, since = 0.0, now
            yield batch
    finally:
        ended.set()


def _tell(asked: list[float], ended: threading.Event, say: Say, patience: float) -> None:
    """Look a few times in `patience` whether one batch is awaited for that long, or for a multiple of it."""
    began, said = 0.0, 0
    while not ended.wait(patience / 8):
        awaited = asked[:1]  # a copy: the other thread may be through with it
        if not awaited:
            continue
        if awaited[0] != began:
            began, said = awaited[0], 0
        seconds = time.monotonic() - began
        if seconds >= (said + 1) * patience:
            said += 1
            say(f"No batch for {seconds:.0f} s: the data pipeline stalls. It still waits for its shards.")


def out_of_memory(error: Exception) -> str | None:
    """What to do when the devices' memory does not suffice; None: the error is another.

    Args:
        error: of jax.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        return None
    wanted = re.search(r"(?:allocat\w+|Used|requires?)[^.\n]*?([\d.]+ ?[KMGT]i?B?|\d+ bytes)", text)
    what = f" (it wanted {wanted[1]})" if wanted else ""
    return (
        f"the devices' memory does not suffice for this step{what}. In this order: a smaller microbatch_size, which "
        "changes nothing that is computed; remat 'minimal' or 'full'; sharding 'fsdp' over more devices.\n"
        + text.split("\n", 1)[0][:400]
    )


def full_disk(error: BaseException) -> str | None:
    """What to do when nothing more can be written; None: the error is another.

    Args:
        error: of a write, or one that came of it.
    """
    found: BaseException | None = error
    while found is not None:
        full = isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or os.strerror(errno.ENOSPC) in str(found):
            return (
                f"{os.strerror(errno.ENOSPC)}: nothing more can be written. The checkpoints are whole: make room, "
                "or let fewer be kept (checkpoint.keep), and the same command continues from the newest"
            )
        found = found.__cause__ or found.__context__
    return None
