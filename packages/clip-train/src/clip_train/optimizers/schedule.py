"""Lengths of time in a run, and the learning rate over it."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
import optax

Length = int | str
"""A stretch of a run: a number of steps, or `"500 steps"`, `"64000 samples"`, `"2 epochs"`, `"3%"` of the run."""

_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|steps?|samples?|epochs?)\s*")


def check_length(length: Length, field: str) -> None:
    """Refuse what is no `Length`.

    Raises:
        ValueError: naming the field, the forms there are and what arrived.
    """
    ok = _LENGTH.fullmatch(length) if isinstance(length, str) else length >= 0
    if not ok:
        raise ValueError(
            f"{field} is a number of steps ≥ 0, or a text such as '500 steps', '64000 samples', '2 epochs' or '3%'; "
            f"got {length!r}"
        )


def to_samples(length: Length, *, samples_per_epoch: int | None) -> int:
    """A `Length` that stands alone as a number of samples: a bare number means samples here.

    Raises:
        ValueError: for steps and percentages, which need a run to refer to, and for epochs of an unknown size.
    """
    if isinstance(length, int):
        return length
    number, unit = _parse(length)
    if unit.startswith("epoch"):
        return round(number * _known(samples_per_epoch, length))
    if unit.startswith("sample"):
        return round(number)
    raise ValueError(f"the length of a run is given in samples or epochs (128000, '30 epochs'); got {length!r}")


def to_steps(length: Length, *, num_steps: int, global_batch_size: int, samples_per_epoch: int | None) -> int:
    """A `Length` as a number of steps, rounded to the nearest.

    Args:
        length: the stretch of time.
        num_steps: steps of the whole run, for percentages.
        global_batch_size: samples in a step.
        samples_per_epoch: samples in all training sources; None: unknown.

    Raises:
        ValueError: for epochs of an unknown size.
    """
    if isinstance(length, int):
        return length
    number, unit = _parse(length)
    if unit == "%":
        return round(num_steps * number / 100)
    if unit.startswith("step"):
        return round(number)
    samples = number * _known(samples_per_epoch, length) if unit.startswith("epoch") else number
    return round(samples / global_batch_size)


def _known(samples_per_epoch: int | None, length: Length) -> int:
    if samples_per_epoch is None:
        raise ValueError(
            f"the data is not opened here, so that an epoch has no size; got {length!r}. Give a number of samples"
        )
    return samples_per_epoch


def _parse(length: str) -> tuple[float, str]:
    match = _LENGTH.fullmatch(length)
    if match is None:
        raise ValueError(f"a length is like '500 steps', '64000 samples', '2 epochs' or '3%'; got {length!r}")
    return float(match[1]), match[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves: zero, then up in a line to its peak, then decay, then down in a line to zero.

    Attributes:
        offset: how long it is zero first.
        warmup: how long the warm-up takes.
        decay: the shape after it. `cosine`, `linear` and `exponential` go down to `end_fraction` of the peak by the
            last step before the cooldown; `rsqrt` falls as 1 / √(1 + t / `timescale`); `constant` stays.
        end_fraction: of the peak; `exponential` needs it above 0.
        timescale: of `rsqrt`; by default the warm-up.
        staircase: how long each value of the decay is kept; by default it falls at every step.
        cooldown: how long the way down to zero takes, at the end.
    """

    offset: Length = 0
    warmup: Length = "3%"
    decay: Literal["cosine", "linear", "exponential", "rsqrt", "constant"] = "cosine"
    end_fraction: float = 0.0
    timescale: Length | None = None
    staircase: Length | None = None
    cooldown: Length = 0

    def __post_init__(self) -> None:
        """Refuse what is no length, and fractions outside [0, 1]."""
        for name in ("offset", "warmup", "cooldown"):
            check_length(getattr(self, name), name)
        for name in ("timescale", "staircase"):
            if (length := getattr(self, name)) is not None:
                check_length(length, name)
        if not 0 <= self.end_fraction <= 1:
            raise ValueError(f"end_fraction is between 0 and 1; got {self.end_fraction}")
        if self.decay == "exponential" and self.end_fraction == 0:
            raise ValueError("end_fraction of an exponential decay is above 0, such as 0.01; got 0")


def make_schedule(
    config: ScheduleConfig,
    *,
    peak: float,
    warmup_steps: int,
    num_steps: int,
    offset_steps: int = 0,
    timescale_steps: int | None = None,
    staircase_steps: int = 1,
    cooldown_steps: int = 0,
) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    Args:
        config: the shape; its lengths are not read.
        peak: the learning rate at the end of the warm-up.
        warmup_steps: updates from the offset to the peak.
        num_steps: updates in all.
        offset_steps: updates before the warm-up.
        timescale_steps: of `rsqrt`; by default the warm-up.
        staircase_steps: updates for which each value of the decay is kept.
        cooldown_steps: the last updates.

    Raises:
        ValueError: offset, warm-up and cooldown are longer than the run, or `rsqrt` has no timescale.
    """
    before = offset_steps + warmup_steps
    if before + cooldown_steps > num_steps:
        parts = [f"{warmup_steps} steps of warm-up"]
        parts += [f"{offset_steps} of offset"] if offset_steps else []
        parts += [f"{cooldown_steps} of cooldown"] if cooldown_steps else []
        raise ValueError(f"warmup must fit in the run; got {', '.join(parts)} in a run of {num_steps}")
    timescale = warmup_steps if timescale_steps is None else timescale_steps
    if config.decay == "rsqrt" and timescale == 0:
        raise ValueError("timescale of a decay rsqrt is the warm-up, and there is none; set schedule.timescale")
    end, after = peak * config.end_fraction, max(num_steps - before - cooldown_steps, 1)
    smooth: optax.Schedule = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, config.end_fraction),
        "linear": lambda: optax.linear_schedule(peak, end, after),
        "exponential": lambda: optax.exponential_decay(peak, after, config.end_fraction, end_value=end),
        "rsqrt": lambda: lambda count: peak * jax.lax.rsqrt(1 + jnp.asarray(count, jnp.float32) / timescale),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.decay]()

    def decay(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        return smooth(jnp.asarray(count) // max(staircase_steps, 1) * max(staircase_steps, 1))

    parts, boundaries = [], []
    if offset_steps:
        parts, boundaries = [optax.constant_schedule(0.0)], [offset_steps]
    if warmup_steps:
        parts, boundaries = [*parts, optax.linear_schedule(0.0, peak, warmup_steps)], [*boundaries, before]
    whole = optax.join_schedules([*parts, decay], boundaries)
    if cooldown_steps:
        down = optax.linear_schedule(float(jnp.asarray(decay(after))), 0.0, cooldown_steps)
        whole = optax.join_schedules([whole, down], [num_steps - cooldown_steps])
    return whole
