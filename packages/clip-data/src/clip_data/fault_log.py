"""What a run lost, epoch by epoch, and when that is too much to go on.

A sample is *lost* where the record at its own position cannot be used. Records that are tried in its place are counted
at positions of their own. An epoch has every record at one position: what it loses are the bad records of the data,
each once, whatever the seed, the threads and the processes.

The share that is lost is judged over whole epochs, and within one over a hundred shards at least: one shard that is bad
from end to end is no share of the data, however early it comes. All that is judged by is counts of samples up to a
position, and a cursor carries them: a run that continues decides as the one that was never interrupted.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clip_data.faults import REASONS, SKIPPED, DataError, Fault

__all__ = ["NUM_SHARDS_JUDGED", "FaultLog", "SumCounts", "check_counts", "judged_over"]

SumCounts = Callable[[list[int]], list[int]]
"""Sums numbers, place by place, over all processes, each of which calls it at the same time."""

NUM_SHARDS_JUDGED = 100
"""Shards whose records a share is judged over at least."""

_NUM_LOGGED = 5  # of each reason at WARNING; the rest at DEBUG
_NUM_ALWAYS_ALLOWED = 16  # so that one bad record in a small set is not a fraction

_IN_RUN = {reason: place for place, reason in enumerate(REASONS)}
_IN_EPOCH = {reason: place for place, reason in enumerate(REASONS, start=len(REASONS))}
_SAMPLES, _LOST, _NUM_COUNTS = 2 * len(REASONS), 2 * len(REASONS) + 1, 2 * len(REASONS) + 2

logger = logging.getLogger("clip_data")


class FaultLog:
    """Counts faults by reason, keeps the latest ones, and says when there are too many.

    Args:
        max_bad_fraction: The share of the samples that are wanted that may be lost, in [0, 1]; the first 16 are always
            allowed, unless it is 0.
        least: Samples of an epoch that its share is judged over at least, as ``judged_over`` gives it.
        process_index: Of this process. The first one speaks for all, and carries what a cursor brings.
        process_count: Of those that share the samples.
        sum_counts: By which they judge together. Without it each judges by its own samples.

    >>> log = FaultLog(max_bad_fraction=0.01)
    >>> log.add([Fault(shard="a.tar", offset=512, reason="bad_image", detail="not an image")], num_samples=1000)
    >>> log.counts
    {'bad_image': 1}
    """

    def __init__(
        self,
        *,
        max_bad_fraction: float,
        least: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        sum_counts: SumCounts | None = None,
    ):
        self._max_bad_fraction, self._least, self._sum_counts = max_bad_fraction, least, sum_counts
        self._is_first = process_index == 0
        self._sees_all = process_count == 1 or sum_counts is not None
        self.recent: deque[Fault] = deque(maxlen=100)
        self.last_epoch: dict[str, int] = {}
        self._num_logged: Counter[str] = Counter()
        self._counts = [0] * _NUM_COUNTS

    @property
    def counts(self) -> dict[str, int]:
        """Number of faults by reason, for those reasons that occurred."""
        return {reason: count for reason, count in _by_reason(self._counts, _IN_RUN).items() if reason not in SKIPPED}

    @property
    def skipped(self) -> dict[str, int]:
        """Number of records that were not wanted, by reason."""
        return {reason: count for reason, count in _by_reason(self._counts, _IN_RUN).items() if reason in SKIPPED}

    def start(self, faults: Iterable[Fault]) -> None:
        """Takes what is wrong with shards as such, which all processes find: the first one counts it."""
        counts = list(self._counts)
        self.add(faults, num_samples=0)
        if not self._is_first:
            self._counts = counts

    def add(self, faults: Iterable[Fault], *, num_samples: int) -> None:
        """Counts the faults of samples, and logs them.

        Args:
            faults: Of each sample one that loses it, at most.
            num_samples: All that were tried.
        """
        for fault in faults:
            self._counts[_IN_RUN[fault.reason]] += 1
            self._counts[_IN_EPOCH[fault.reason]] += 1
            if fault.reason in SKIPPED:
                logger.debug("%s", fault)
                continue
            self._counts[_LOST] += fault.lost
            self.recent.append(fault)
            self._num_logged[fault.reason] += 1
            logger.log(logging.WARNING if self._num_logged[fault.reason] <= _NUM_LOGGED else logging.DEBUG, "%s", fault)
        self._counts[_SAMPLES] += num_samples

    def judge(self) -> None:
        """Judges the epoch under way.

        Raises:
            DataError: Of its samples so far more were lost than ``max_bad_fraction`` allows.
        """
        self._judge(self._total(), is_whole=False)

    def end_epoch(self, name: str, *, is_whole: bool = True) -> None:
        """Judges an epoch that is over, says what it lost, and begins the next one.

        Args:
            name: Of the epoch, for people.
            is_whole: False where the run ends within it: what it lost stays counted.

        Raises:
            DataError: More was lost than ``max_bad_fraction`` allows, or nothing was left.
        """
        counts = self._total()
        self._judge(counts, is_whole=is_whole)
        found = _by_reason(counts, _IN_EPOCH)
        if found and (self._is_first or not self._sees_all):
            # What was said of the epoch before needs no saying again.
            is_news = counts[_LOST] and found != self.last_epoch
            message = f"{name}: {counts[_LOST]} of {counts[_SAMPLES]} samples could not be used ({_in_words(found)})"
            logger.log(logging.WARNING if is_news else logging.INFO, "%s", message)
        if is_whole:
            self.last_epoch = found
            self._counts[len(REASONS) :] = [0] * (_NUM_COUNTS - len(REASONS))

    def save(self) -> tuple[int, ...]:
        """Returns this process's counts, for ``restore``."""
        return tuple(self._counts)

    def restore(self, counts: Sequence[int]) -> None:
        """Goes back to counts that were saved."""
        self._counts = list(counts)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts of all processes, for a cursor."""
        counts = self._total()
        return {
            "run": _by_reason(counts, _IN_RUN),
            "epoch": _by_reason(counts, _IN_EPOCH),
            "samples": counts[_SAMPLES],
            "lost": counts[_LOST],
        }

    def from_json(self, counts: Mapping[str, Any]) -> None:
        """Goes on from the counts of a cursor, which the first process carries for all."""
        self._counts = [0] * _NUM_COUNTS
        if self._is_first:
            for name, places in (("run", _IN_RUN), ("epoch", _IN_EPOCH)):
                for reason, count in counts[name].items():
                    self._counts[places[reason]] = count
            self._counts[_SAMPLES], self._counts[_LOST] = counts["samples"], counts["lost"]

    def _total(self) -> list[int]:
        return list(self._counts if self._sum_counts is None else self._sum_counts(list(self._counts)))

    def _judge(self, counts: Sequence[int], *, is_whole: bool) -> None:
        samples, lost, found = counts[_SAMPLES], counts[_LOST], _by_reason(counts, _IN_EPOCH)
        wanted = samples - sum(count for reason, count in found.items() if reason in SKIPPED)
        # One process of several may have drawn nothing but bad samples without all having.
        if is_whole and samples and wanted == lost and self._sees_all:
            nothing = "could be used" if lost else "is wanted"
            raise DataError(
                f"none of {samples} samples {nothing} ({_in_words(found)}): check the source's keys, filters and files"
                + self._last()
            )
        allowed = self._max_bad_fraction * wanted * max(1.0, self._least / max(samples, 1))
        if self._max_bad_fraction:
            allowed = max(allowed, _NUM_ALWAYS_ALLOWED)
        if lost > allowed:
            raise DataError(
                f"{lost} of {wanted} samples could not be used ({_in_words(found)}); max_bad_fraction allows "
                f"{self._max_bad_fraction:g}" + self._last()
            )

    def _last(self) -> str:
        return f". The last one: {self.recent[-1]}" if self.recent else ""


def judged_over(counts: Iterable[Iterable[int]]) -> int:
    """Returns the number of records that a share is judged over at least: those of a hundred shards, or all.

    Args:
        counts: For each source the number of records of each shard.

    >>> judged_over([[10] * 1000])
    1000
    >>> judged_over([[10, 20], [30]])
    60
    """
    sizes = [count for source in counts for count in source if count]
    return sum(sizes) * min(NUM_SHARDS_JUDGED, len(sizes)) // max(len(sizes), 1)


def check_counts(counts: Any) -> dict[str, Any]:
    """Returns the counts of a cursor.

    Raises:
        ValueError: They are none.
    """
    if isinstance(counts, dict) and counts.keys() == {"run", "epoch", "samples", "lost"}:
        by_reason = [counts["run"], counts["epoch"]]
        if all(isinstance(found, dict) and found.keys() <= _IN_RUN.keys() for found in by_reason):
            numbers = [*by_reason[0].values(), *by_reason[1].values(), counts["samples"], counts["lost"]]
            if all(type(number) is int and number >= 0 for number in numbers):
                return counts
    raise ValueError(f"a cursor's counts must be what FaultLog counts, not {counts!r:.200}")


def _by_reason(counts: Sequence[int], places: Mapping[str, int]) -> dict[str, int]:
    return {reason: counts[place] for reason, place in places.items() if counts[place]}


def _in_words(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in found.items())
