"""Which record is sample number n of the run: a pure function of (seed, sources, n).

Nothing here depends on processes, threads or what was read before. A source is gone through epoch by epoch. An epoch is
a permutation of its shards, whose records, laid end to end, are cut into equal streams. Streams take turns, sample by
sample; each is cut into blocks of a few shards, with the records of a block permuted among themselves. A process that
is handed neighbouring rows of every batch thereby reads from a few streams, and so from a few shards, alone.

Several sources are interleaved as evenly as their weights allow.

Permutations sort SplitMix64 hashes, so that they stay the same whatever the version of numpy.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from clip_data.config import DataConfig

__all__ = ["Block", "Order", "Place", "mix"]

_MIX_CYCLE = 4096
_ATTEMPTS_IN_BLOCK = 8
_SKIPS_IN_BLOCK = 1024
_MASK = (1 << 64) - 1


class Place(NamedTuple):
    """Where a record is: indices of the source, of the shard in its list, and of the record in the shard."""

    source: int
    shard: int
    row: int


class Block(NamedTuple):
    """A run of records that are permuted among themselves, in the epoch's order of shards.

    Args:
        shards: Shards that it takes records from.
        firsts: For each of them its first record that belongs here; the block takes all of a shard but at its ends.
        ends: Records up to the end of each.
        permutation: The records in the order of the samples; None takes them as they come.
        end: Position in the run after its last sample.
    """

    shards: list[int]
    firsts: list[int]
    ends: list[int]
    permutation: np.ndarray | None
    end: int


class _Epoch(NamedTuple):
    shards: np.ndarray  # the order of the shards
    ends: np.ndarray  # records up to the end of each shard


class _Stream(NamedTuple):
    first: int  # records of the epoch before it
    ends: list[int]  # its records up to the end of each of its blocks


class Order:
    """The order of all samples of a run.

    Args:
        counts: For each source the number of records of each shard.
        weights: For each source its expected share of samples; normalised here.
        seed: Of the permutations.
        shuffle: False goes through shards and records as they are listed, in one stream.
        block_shards: Number of shards, over all streams, whose records are mixed at a time. A source of no more is one
            block in one stream.
        num_streams: Streams of a larger source; no more than ``block_shards`` are made.
        concatenate: True puts the sources one after the other, in every epoch, and ignores the weights.

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
        num_streams: int = 1,
        concatenate: bool = False,
    ):
        self._counts = [np.asarray(source, np.int64) for source in counts]
        self._totals = [int(source.sum()) for source in self._counts]
        if not all(self._totals):
            raise ValueError(f"every source must hold records, but source {self._totals.index(0)} holds none")
        self._seed, self._shuffle = seed, shuffle
        num_streams = min(num_streams, block_shards) if shuffle else 1
        self._streams = [num_streams if np.count_nonzero(source) > block_shards else 1 for source in self._counts]
        self.num_streams: int = max(self._streams)
        self._block_shards = [max(block_shards // streams, 1) if shuffle else 1 for streams in self._streams]
        self._starts = [0, *itertools.accumulate(self._totals)] if concatenate else None
        # Weights are honoured to one part in a cycle.
        self._cycle = max(_MIX_CYCLE, 1 << (len(counts) - 1).bit_length())
        self._slots = None if concatenate or len(counts) == 1 else _interleave(weights, self._cycle)
        # Samples come roughly in order from every source, so that a few epochs and blocks of each are enough.
        self._epoch = lru_cache(maxsize=2 * len(counts))(self._make_epoch)
        self._stream = lru_cache(maxsize=4 * sum(self._streams))(self._make_stream)
        self._block = lru_cache(maxsize=4 * sum(self._streams))(self._make_block)

    @staticmethod
    def of(config: DataConfig, counts: Sequence[Sequence[int]]) -> Order:
        """Returns the order that a config asks for.

        Args:
            config: Of a pipeline.
            counts: For each of its sources the number of records of each shard.
        """
        return Order(
            counts,
            [source.weight for source in config.sources],
            seed=config.seed,
            shuffle=config.shuffle,
            block_shards=config.block_shards,
            num_streams=config.num_streams,
            concatenate=config.evaluates,
        )

    @property
    def num_samples(self) -> int:
        """Number of records of all sources."""
        return sum(self._totals)

    def __call__(self, position: int) -> Place:
        """Returns the place of sample number ``position`` of the run, counted from 0."""
        return self.locate(position)[0]

    def locate(self, position: int) -> tuple[Place, int]:
        """Returns the place of a sample, and the position after the last one of its block.

        Args:
            position: Of the sample in the run.
        """
        source, block, offset = self._in_block(position)
        index = offset if block.permutation is None else int(block.permutation[offset])
        return _place(source, block, index), block.end

    def rows(self, start: int, size: int) -> list[int]:
        """Returns the positions of a batch, row by row: those of one stream are neighbours.

        Args:
            start: Position of the batch's first sample.
            size: Number of its samples.

        >>> order = Order([[5, 5, 5]], [1.0], seed=0, shuffle=True, block_shards=2, num_streams=2)
        >>> order.rows(4, 6)
        [4, 6, 8, 5, 7, 9]
        """
        streams = self.num_streams
        lanes = (range(start + (lane - start) % streams, start + size, streams) for lane in range(streams))
        return list(itertools.chain.from_iterable(lanes))

    def draw(self, position: int) -> int:
        """Returns 64 bits for the choices, such as one of several captions, that the sample at ``position`` leaves."""
        return mix(self._seed, 3, position)

    def replacement(self, position: int, attempt: int, *, num_skipped: int = 0) -> Place:
        """Returns the place to try instead when the sample at ``position`` cannot be used.

        Args:
            position: Of the sample in the run.
            attempt: 1, 2, … The first eight stay within the sample's block, whose shards are at hand.
            num_skipped: Attempts so far whose record was whole and not wanted; they leave the block after a thousand.

        Returns:
            A place drawn by a hash of the seed, the position and the attempt.
        """
        source, block, _ = self._in_block(position)
        draw = mix(self._seed, 2, position, attempt)
        if attempt - num_skipped > _ATTEMPTS_IN_BLOCK or num_skipped > _SKIPS_IN_BLOCK:
            ends = np.cumsum(self._counts[source]).tolist()
            block = block._replace(shards=list(range(len(ends))), firsts=[0] * len(ends), ends=ends)
        return _place(source, block, draw % block.ends[-1])

    def following(self, position: int) -> tuple[int, Block]:
        """Returns the source of a position and the block that comes after its own in its stream."""
        source, position = self._in_source(position)
        epoch, stream, number, _ = self._locate(source, position)
        if number + 1 < len(self._stream(source, epoch, stream).ends):
            return source, self._block(source, epoch, stream, number + 1)
        # An epoch that does not divide by the streams shifts them against the positions.
        stream = (stream - self._totals[source]) % self._streams[source]
        return source, self._block(source, epoch + 1, stream, 0)

    def _in_source(self, position: int) -> tuple[int, int]:
        if self._starts is not None:
            epoch, position = divmod(position, self._starts[-1])
            source = bisect.bisect_right(self._starts, position) - 1
            return source, epoch * self._totals[source] + position - self._starts[source]
        if self._slots is None:
            return 0, position
        sources, ranks, sizes = self._slots
        # All streams take from one source at a time: a stream of the batch stays a stream of each source.
        position, lane = divmod(position, self.num_streams)
        cycle, slot = divmod(position, self._cycle)
        source = int(sources[slot])
        return source, (cycle * int(sizes[source]) + int(ranks[slot])) * self.num_streams + lane

    def _in_run(self, source: int, position: int) -> int:
        """Returns the position in the run of one in a source: what ``_in_source`` undoes."""
        if self._starts is not None:
            epoch, position = divmod(position, self._totals[source])
            return epoch * self._starts[-1] + self._starts[source] + position
        if self._slots is None:
            return position
        sources, _, sizes = self._slots
        position, lane = divmod(position, self.num_streams)
        cycle, rank = divmod(position, int(sizes[source]))
        slot = int(np.flatnonzero(sources == source)[rank])
        return (cycle * self._cycle + slot) * self.num_streams + lane

    def _in_block(self, position: int) -> tuple[int, Block, int]:
        source, position = self._in_source(position)
        epoch, stream, number, offset = self._locate(source, position)
        return source, self._block(source, epoch, stream, number), offset

    def _locate(self, source: int, position: int) -> tuple[int, int, int, int]:
        """Returns the epoch, the stream, the number of its block and the offset there."""
        epoch, position = divmod(position, self._totals[source])
        offset, stream = divmod(position, self._streams[source])
        ends = self._stream(source, epoch, stream).ends
        number = bisect.bisect_right(ends, offset)
        return epoch, stream, number, offset - (ends[number - 1] if number else 0)

    def _make_epoch(self, source: int, epoch: int) -> _Epoch:
        counts = self._counts[source]
        shards = np.flatnonzero(counts)
        if self._shuffle:
            shards = shards[_permutation(len(shards), mix(self._seed, 0, source, epoch))]
        return _Epoch(shards, counts[shards].cumsum())

    def _make_stream(self, source: int, epoch: int, stream: int) -> _Stream:
        """Cuts a stream off the epoch, and blocks off the stream, at the ends of shards."""
        total, streams, block_shards = self._totals[source], self._streams[source], self._block_shards[source]
        sizes = [(total + streams - 1 - number) // streams for number in range(stream + 1)]
        first, last = sum(sizes[:-1]), sum(sizes)
        ends = self._epoch(source, epoch).ends
        inside = ends[np.searchsorted(ends, first, "right") : np.searchsorted(ends, last, "left")]
        return _Stream(first, [*(inside[block_shards - 1 :: block_shards] - first).tolist(), last - first])

    def _make_block(self, source: int, epoch: int, stream: int, number: int) -> Block:
        layout, here = self._epoch(source, epoch), self._stream(source, epoch, stream)
        first = here.first + (here.ends[number - 1] if number else 0)
        last = here.first + here.ends[number]
        span = slice(np.searchsorted(layout.ends, first, "right"), np.searchsorted(layout.ends, last, "left") + 1)
        shards, shard_ends = layout.shards[span], layout.ends[span]
        firsts = np.maximum(first - (shard_ends - self._counts[source][shards]), 0).tolist()
        ends = (np.minimum(shard_ends, last) - first).tolist()
        permutation = None
        if self._shuffle:
            permutation = _permutation(last - first, mix(self._seed, 1, source, epoch, stream, number))
        at = epoch * self._totals[source] + (here.ends[number] - 1) * self._streams[source] + stream
        return Block(shards.tolist(), firsts, ends, permutation, self._in_run(source, at) + 1)


def _place(source: int, block: Block, index: int) -> Place:
    which = bisect.bisect_right(block.ends, index)
    return Place(source, block.shards[which], block.firsts[which] + index - (block.ends[which - 1] if which else 0))


def _interleave(weights: Sequence[float], cycle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spreads sources over a cycle: the source of each slot, how many of it came before, and how many there are."""
    shares = np.asarray(weights, np.float64) / np.sum(weights) * cycle
    sizes = np.maximum(np.floor(shares).astype(np.int64), 1)
    for source in np.argsort(sizes - shares, kind="stable")[: max(cycle - int(sizes.sum()), 0)]:
        sizes[source] += 1
    sizes[int(np.argmax(sizes))] -= int(sizes.sum()) - cycle  # where tiny weights were raised to one slot
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


def mix(*numbers: int) -> int:
    """Returns 64 bits that are a hash of integers: the first a seed, the second a purpose."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state
