"""A run's metrics as curves short enough for a page, whatever the run's length: in one pass, in bounded memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from clip_train.jsonl import Row

_MOST_POINTS = 300
# What a first step, which holds the compilation, would flatten.
_TIMES = frozenset({"seconds", "images_per_second", "images_per_second_per_device", "mfu", "data_fraction"})


@dataclasses.dataclass
class _Point:
    step: int
    sum: float
    num: int
    low: float
    high: float

    def merge(self, other: _Point) -> None:
        self.step, self.sum, self.num = other.step, self.sum + other.sum, self.num + other.num
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


class Curve:
    """One quantity over the steps, in points of as many values each: when they grow too many, two become one.

    Example:
        >>> curve = Curve(most_points=2)
        >>> for step in range(1, 9):
        ...     curve.add(step, float(step))
        >>> curve.to_json()
        {'step': [2, 4, 6, 8], 'mean': [1.5, 3.5, 5.5, 7.5], 'low': [1.0, 3.0, 5.0, 7.0], 'high': [2.0, 4.0, 6.0, 8.0]}
    """

    def __init__(self, most_points: int = _MOST_POINTS) -> None:
        self._most_points = most_points
        self._size = 1
        self._points: list[_Point] = []

    def add(self, step: int, value: float) -> None:
        """Add a value; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        point = _Point(step, value, 1, value, value)
        if self._points and self._points[-1].num < self._size:
            self._points[-1].merge(point)
            return
        if len(self._points) == 2 * self._most_points:
            for left, right in zip(self._points[::2], self._points[1::2], strict=True):
                left.merge(right)
            del self._points[1::2]
            self._size *= 2
        self._points.append(point)

    @property
    def last(self) -> float:
        """The newest point's mean."""
        return self._points[-1].sum / self._points[-1].num

    @property
    def num_points(self) -> int:
        """How many points there are."""
        return len(self._points)

    def is_zero(self) -> bool:
        """Whether it never was anything else."""
        return all(point.low == point.high == 0 for point in self._points)

    def to_json(self) -> dict[str, list[Any]]:
        """The last step of each point and its mean, and where points hold several values their lowest and highest."""
        points = self._points
        made = {"step": [p.step for p in points], "mean": [_short(p.sum / p.num) for p in points]}
        if self._size > 1:
            made |= {"low": [_short(p.low) for p in points], "high": [_short(p.high) for p in points]}
        return made


def read_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """Every metric of a run by its name, and `hours`, the training time up to a step.

    Args:
        rows: of `metrics.jsonl`, in order.
    """
    curves: dict[str, Curve] = {}
    hours, is_first = 0.0, True
    for row in rows:
        hours += row.get("seconds", 0.0) / 3600
        for name, value in {**row, "hours": hours}.items():
            if name not in ("step", "samples") and not (is_first and name in _TIMES):
                curves.setdefault(name, Curve()).add(row["step"], value)
        is_first &= "seconds" not in row
    return {name: curve for name, curve in curves.items() if curve.num_points and not curve.is_zero()}


def _short(value: float) -> float:
    return float(f"{value:.7g}")
