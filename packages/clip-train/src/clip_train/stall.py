"""Batches that do not come, or come too slowly, are said while the run waits for them."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Say = Callable[[str], None]
T = TypeVar("T")


def watched(
    batches: Iterable[T],
    say: Say,
    *,
    patience: float = 30.0,
    share: float | None = 0.2,
    window: float = 60.0,
) -> Iterator[T]:
    """Pass batches on, and say when they do not come, or when too much time goes into waiting for them.

    Args:
        batches: any.
        say: prints a warning; called from another thread while a batch is awaited.
        patience: seconds for one batch before it is said, and again each time as long.
        share: of the last `window` that goes into waiting, above which it is said; and again once it has been below
            half of that. `None`: it is never said.
        window: seconds.
    """
    starvation = Starvation(say, share=share, window=window) if share is not None else None
    asked: list[float] = []  # since when a batch is awaited, while one is
    ended = threading.Event()
    threading.Thread(target=_tell, args=(asked, ended, say, patience), name="data-watch", daemon=True).start()
    iterator = iter(batches)
    try:
        while True:
            asked.append(began := time.monotonic())
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                asked.pop()
            if starvation is not None:
                starvation.add(began, time.monotonic())
            yield batch
    finally:
        ended.set()


class Starvation:
    """Tells that the device waits for data: once, and again when it has recovered in between.

    Args:
        say: prints a warning.
        share: of the time, above which it is told.
        window: seconds over which the share is taken.
    """

    def __init__(self, say: Say, *, share: float, window: float) -> None:
        self._say, self._share, self._window = say, share, window
        self._waits: collections.deque[tuple[float, float]] = collections.deque()  # when each ended, and its seconds
        self._since: float | None = None
        self._waited = 0.0
        self._told = False

    def add(self, began: float, ended: float) -> None:
        """Count one wait, from when to when in seconds."""
        if self._since is None:
            self._since = ended  # nothing was there to be prefetched, and the step is not yet compiled
            return
        self._waits.append((ended, ended - began))
        self._waited += ended - began
        while self._waits[0][0] < ended - self._window:
            self._waited -= self._waits.popleft()[1]
        if ended - self._since < self._window:
            return
        share = min(self._waited / self._window, 1.0)
        if share > self._share and not self._told:
            self._told = True
            self._say(
                f"{100 * share:.0f} % of the last {self._window:.0f} s went into waiting for data: the step is faster "
                "than reading and decoding. More data.num_threads, smaller pictures in the shards, or "
                "data.augment.source_size may help."
            )
        self._told = self._told and share >= self._share / 2


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
