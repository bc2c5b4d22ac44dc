"""What the processes of a run decide together while it goes on: to stop, to save, that too many samples are bad."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Agreement:
    """A vote in each process after each update, and one outcome for all: the largest vote.

    One process decides at once. Several send their votes along with the updates, and read the outcome two updates
    later, when that stalls nothing: every process reads the same outcome after the same update.

    Args:
        num_votes: decided at a time.
        lag: updates between a vote and its outcome, of several processes.
    """

    def __init__(self, num_votes: int, *, lag: int = 2) -> None:
        self._num_votes = num_votes
        self._lag = lag if jax.process_count() > 1 else 0
        self._under_way: collections.deque[jax.Array] = collections.deque()
        mesh = Mesh(np.array(jax.devices()), ("device",))
        self._rows = NamedSharding(mesh, PartitionSpec("device"))
        self._largest = jax.jit(lambda rows: rows.max(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def cast(self, votes: Sequence[int]) -> list[int]:
        """Vote, and read the outcome of the votes of `lag` updates ago: zeros while there is none.

        Args:
            votes: each at least 0, which is no.
        """
        if self._lag == 0:
            return list(votes)
        row = np.asarray(votes, np.int32)[None]
        shape = (jax.device_count(), self._num_votes)
        self._under_way.append(self._largest(jax.make_array_from_callback(shape, self._rows, lambda _: row)))
        if len(self._under_way) <= self._lag:
            return [0] * self._num_votes
        return np.asarray(self._under_way.popleft()).tolist()

    def forget(self) -> None:
        """Drop the votes under way: what they asked for was just done."""
        self._under_way.clear()


def sum_counts(counts: list[int], *, gather: Callable[[list[Any]], list[Any]]) -> list[int]:
    """Add up counts over the processes, as `clip_data.Pipeline` asks for; collective.

    Args:
        counts: of this process's samples.
        gather: `clip_sharding.gather_items`, which takes once what several processes read alike.
    """
    return [sum(column) for column in zip(*gather([counts]), strict=True)]
