"""Which record is sample number n of the run: a pure function of (seed, sources, n).

Nothing here depends on processes, threads or what was read before. A source is gone through epoch by epoch; an epoch is
a permutation of its shards, cut into blocks of ``block_shards``, with the records of a block permuted among themselves.
Several sources are interleaved as evenly as their weights allow.

Permutations sort SplitMix64 hashes, so that they stay the same whatever the version of numpy.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ["Order", "Place"]

_MIX_CYCLE = 4096  # weights are honoured to one part in this
_ATTEMPTS_IN_BLOCK = 8
_MASK = (1 << 64) - 1


class Place(NamedTuple):
    """Where a record is: indices of the source, of the shard in its list, and of the record in the shard."""

    source: int
    shard: int
    row: int


@dataclass(frozen=True)
class _Epoch:
    shards: np.ndarray  # the order of the shards
    ends: list[int]  # records up to the end of each block
    block_shards: int


class Order:
    """The order of all samples of a run.

    Args:
        counts: For each source the number of records of each shard.
        weights: For each source its expected share of samples; normalised here.
        seed: Of the permutations.
        shuffle: False goes through shards and records as they are listed.
        block_shards: Number of shards whose records are shuffled among themselves.
        concatenate: True puts the sources one after the other, once, and ignores the weights.

    Raises:
        ValueError: A source has no records.

    >>> order = Order([[2, 2]], [1.0], seed=0, shuffle=False, block_shards=8)
    >>> [tuple(order(n)) for n in range(5)]
    [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 0, 0)]
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        weights: Sequence[float],
        *,
        seed: int,
        shuffle: bool,
        block_shards: int,
        concatenate: bool = False,
    ):
        self._counts = [np.asarray(source, np.int64) for source in counts]
        self._totals = [int(source.sum()) for source in self._counts]
        if not all(self._totals):
            raise ValueError(f"every source must hold records, but source {self._totals.index(0)} holds none")
        self._seed, self._shuffle, self._block_shards = seed, shuffle, block_shards
        self._starts = [0, *itertools.accumulate(self._totals)] if concatenate else None
        self._slots = None if concatenate or len(counts) == 1 else _interleave(weights)
        # Samples come roughly in order from every source, so that a few epochs and blocks of each are enough.
        self._epoch = lru_cache(maxsize=2 * len(counts))(self._make_epoch)
        self._block = lru_cache(maxsize=4 * len(counts))(self._make_block)

    @property
    def num_samples(self) -> int:
        """Number of records of all sources."""
        return sum(self._totals)

    def __call__(self, position: int) -> Place:
        """Returns the place of sample number ``position`` of the run, counted from 0."""
        source, position = self._in_source(position)
        epoch, block, offset = self._in_block(source, position)
        shards, ends, permutation = self._block(source, epoch, block)
        return _place(source, shards, ends, offset if permutation is None else int(permutation[offset]))

    def replacement(self, position: int, attempt: int) -> Place:
        """Returns the place to try instead when the sample at ``position`` cannot be used.

        Args:
            position: Of the sample in the run.
            attempt: 1, 2, … The first eight stay within the sample's block, whose shards are at hand.

        Returns:
            A place drawn by a hash of the seed, the position and the attempt.
        """
        source, source_position = self._in_source(position)
        draw = _hash(self._seed, 2, position, attempt)
        if attempt <= _ATTEMPTS_IN_BLOCK:
            epoch, block, _ = self._in_block(source, source_position)
            shards, ends, _ = self._block(source, epoch, block)
        else:
            shards, ends = (
                np.arange(len(self._counts[source])),
                list(itertools.accumulate(self._counts[source].tolist())),
            )
        return _place(source, shards, ends, draw % ends[-1])

    def _in_source(self, position: int) -> tuple[int, int]:
        if self._starts is not None:
            source = bisect.bisect_right(self._starts, position) - 1
            return source, position - self._starts[source]
        if self._slots is None:
            return 0, position
        sources, ranks, sizes = self._slots
        cycle, slot = divmod(position, _MIX_CYCLE)
        source = int(sources[slot])
        return source, cycle * int(sizes[source]) + int(ranks[slot])

    def _in_block(self, source: int, position: int) -> tuple[int, int, int]:
        epoch, offset = divmod(position, self._totals[source])
        ends = self._epoch(source, epoch).ends
        block = bisect.bisect_right(ends, offset)
        return epoch, block, offset - (ends[block - 1] if block else 0)

    def _make_epoch(self, source: int, epoch: int) -> _Epoch:
        counts = self._counts[source]
        shards = np.flatnonzero(counts)
        block_shards = self._block_shards if self._shuffle else 1
        if self._shuffle:
            shards = shards[_permutation(len(shards), _hash(self._seed, 0, source, epoch))]
        ends = counts[shards].cumsum()
        ends = [*ends[block_shards - 1 :: block_shards].tolist(), int(ends[-1])]
        return _Epoch(shards, ends, block_shards)

    def _make_block(self, source: int, epoch: int, block: int) -> tuple[np.ndarray, list[int], np.ndarray | None]:
        """Returns a block's shards, the records up to the end of each, and the permutation of all."""
        layout = self._epoch(source, epoch)
        shards = layout.shards[block * layout.block_shards : (block + 1) * layout.block_shards]
        ends = self._counts[source][shards].cumsum().tolist()
        if not self._shuffle:
            return shards, ends, None
        return shards, ends, _permutation(ends[-1], _hash(self._seed, 1, source, epoch, block))


def _place(source: int, shards: np.ndarray, ends: list[int], index: int) -> Place:
    which = bisect.bisect_right(ends, index)
    return Place(source, int(shards[which]), index - (ends[which - 1] if which else 0))


def _interleave(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spreads sources over a cycle: the source of each slot, how many of it came before, and how many there are."""
    shares = np.asarray(weights, np.float64) / np.sum(weights) * _MIX_CYCLE
    sizes = np.maximum(np.floor(shares).astype(np.int64), 1)
    for source in np.argsort(sizes - shares, kind="stable")[: max(_MIX_CYCLE - int(sizes.sum()), 0)]:
        sizes[source] += 1
    sizes[int(np.argmax(sizes))] -= int(sizes.sum()) - _MIX_CYCLE  # where tiny weights were raised to one slot
    sources = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.concatenate([np.arange(size) for size in sizes])
    slots = np.argsort((ranks + 0.5) / sizes[sources], kind="stable")
    return sources[slots], ranks[slots], sizes


def _permutation(size: int, key: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        hashes = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(hashes ^ (hashes >> np.uint64(31)), kind="stable").astype(np.uint32)


def _hash(*numbers: int) -> int:
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state
