"""Somebody asks a run to stop: by Ctrl-C, or by SIGTERM, as schedulers do before they take a machine away."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import jax

from clip_train.agreement import Agreement

T = TypeVar("T")

_HEARD = b"\nStopping after this step, and saving."
_TWICE = b" Ctrl-C again ends at once, without saving."


class Interrupted(KeyboardInterrupt):
    """What may be broken off was, since somebody asked the run to stop."""


class Stop:
    """Whether somebody asked the run to stop: as a context manager it catches Ctrl-C and SIGTERM.

    The first of them sets `signal`: the run ends after the step under way, and saves. What changes nothing, such as the
    wait for a batch or an evaluation, is broken off for it. A second Ctrl-C ends the run at once, without saving; a
    second SIGTERM changes nothing, for some schedulers send several.

    Of several processes one that is asked is enough: `fit` ends all after the same step, and sets `signal` in all. None
    can break off alone what the others wait for: a process whose batch does not come holds the others back.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._breaks_off = False

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def breaks_off(self) -> Iterator[None]:
        """In this block, a signal raises `Interrupted` where it finds the process; so does one that was there before.

        Nothing that the block may leave half done is of use after it. Of several processes, nothing is broken off.
        """
        if jax.process_count() > 1:
            yield
            return
        self._breaks_off = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._breaks_off = False

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, and raise `Interrupted` between two of them once one of several processes was asked to stop.

        Every process passes on the same number of items, and raises before the same one.
        """
        agreement = Agreement(1) if jax.process_count() > 1 else None
        for item in items:
            if agreement is not None:
                (asked,) = agreement.cast([int(self.signal or 0)])
                if asked:
                    self.signal = signal.Signals(asked)
                    raise Interrupted
            yield item

    def _ask(self, number: int, _: FrameType | None) -> None:
        again = self.signal is not None
        if not again:
            self.signal = signal.Signals(number)
            # Not by print, which may be interrupted within itself.
            os.write(2, _HEARD + (_TWICE if number == signal.SIGINT else b"") + b"\n")
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._breaks_off and not again:
            raise Interrupted
