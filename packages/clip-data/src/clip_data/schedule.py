"""How many samples each batch holds, and of how many patches: a pure function of the seed and the batch's number.

Batches of one size need no more than this: all are alike. With several lengths of sequences each batch takes one of
them, and as many samples as a budget of tokens leaves room for, so that all batches cost about the same and come in a
few shapes; or as many as any other, where what is learnt depends on their number. It is how SigLIP 2's NaFlex models
were trained (a length drawn for each batch) and how timm batches for them (a budget of tokens); drawing lengths without
replacement keeps what an epoch holds of each.

References:
    Tschannen et al., SigLIP 2, https://arxiv.org/abs/2502.14786.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from clip_data.config import DataConfig
from clip_data.order import mix

__all__ = ["BatchShape", "Schedule"]


class BatchShape(NamedTuple):
    """Samples of a batch, and the patches of its sequences, 0 where pictures stay pictures."""

    num_rows: int
    max_patches: int = 0


class Schedule:
    """The shapes of all batches of a run.

    Every len(lengths) batches take each length once, in an order of their own.

    Args:
        global_batch_size: Samples of a batch of the longest sequences. Those of shorter ones have as many more as hold
            no more patches, rounded down to what divides by the common divisor of this and ``num_streams``.
        lengths: Patches of sequences, one or several; one that is named twice comes twice as often.
        seed: Of the order of the lengths.
        num_streams: As in ``DataConfig``.
        by_tokens: Whether batches keep to one number of patches; otherwise all have as many samples.

    >>> schedule = Schedule(16, [64, 256, 144], seed=0, num_streams=8)
    >>> [tuple(schedule(number)) for number in range(4)]
    [(16, 256), (24, 144), (64, 64), (64, 64)]
    """

    def __init__(
        self, global_batch_size: int, lengths: Sequence[int], *, seed: int, num_streams: int, by_tokens: bool = True
    ):
        self._seed = seed
        unit, budget = math.gcd(global_batch_size, num_streams), global_batch_size * max(lengths)
        self.shapes: tuple[BatchShape, ...] = tuple(
            BatchShape(budget // length // unit * unit if length and by_tokens else global_batch_size, length)
            for length in lengths
        )

    @staticmethod
    def of(config: DataConfig, global_batch_size: int) -> Schedule:
        """Returns the schedule that a config asks for.

        Args:
            config: Of a pipeline.
            global_batch_size: As for the class.
        """
        lengths = config.patch_lengths if config.has_images and config.resize_mode == "naflex" else (0,)
        return Schedule(
            global_batch_size,
            lengths,
            seed=config.seed,
            num_streams=config.num_streams,
            by_tokens=config.batch_by == "tokens",
        )

    def __call__(self, number: int) -> BatchShape:
        """Returns the shape of batch ``number`` of the run, counted from 0."""
        cycle, index = divmod(number, len(self.shapes))
        if len(self.shapes) == 1:
            return self.shapes[0]
        return self.shapes[sorted(range(len(self.shapes)), key=lambda i: mix(self._seed, 4, cycle, i))[index]]

    def num_batches(self, num_samples: int) -> int:
        """Returns the number of full batches that samples make.

        Args:
            num_samples: Of the run.
        """
        cycles, left = divmod(num_samples, sum(shape.num_rows for shape in self.shapes))
        number = cycles * len(self.shapes)
        while (left := left - self(number).num_rows) >= 0:
            number += 1
        return number
