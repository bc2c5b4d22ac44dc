"""Line charts as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_MOST_POINTS = 400


def line_chart(xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str, log_y: bool = False) -> Markup:
    """Draw one quantity over another: the values faintly, a moving average over a 50th of them on top.

    Args:
        xs: increasing.
        ys: as many; those that are not finite are left out.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical one.
        log_y: a logarithmic vertical axis; only if every value is above 0.

    Returns:
        An `<svg>` element; it scales to the width it is given.
    """
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        return Markup('<p class="empty">{}: no values</p>').format(y_label)
    log_y = log_y and min(y for _, y in points) > 0
    smooth = _moving_average(points, max(len(points) // 50, 1))
    x_ticks = _ticks(points[0][0], points[-1][0])
    low, high = min(y for _, y in points), max(y for _, y in points)
    y_ticks = _log_ticks(low, high) if log_y else _ticks(low, high)
    to_x = _scale(min(points[0][0], x_ticks[0]), max(points[-1][0], x_ticks[-1]), _LEFT, _WIDTH - _RIGHT)
    along = math.log10 if log_y else float
    bottom, top = along(min(low, y_ticks[0])), along(max(high, y_ticks[-1]))
    to_y = _scale(bottom, top, _HEIGHT - _BOTTOM, _TOP)

    def path(line: Sequence[tuple[float, float]], name: str) -> Markup:
        kept = line[:: max(len(line) // _MOST_POINTS, 1)]
        if kept[-1] != line[-1]:
            kept = [*kept, line[-1]]
        coordinates = " ".join(f"{to_x(x):.1f},{to_y(along(y)):.1f}" for x, y in kept)
        return Markup('<polyline class="{}" points="{}"/>').format(name, coordinates)

    parts = []
    for tick in y_ticks:
        y = to_y(along(tick))
        line = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(_LEFT, _WIDTH - _RIGHT, y, y))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, _label(tick))
        )
    for tick in x_ticks:
        text = '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        parts.append(Markup(text).format(to_x(tick), _HEIGHT - _BOTTOM + 16, _label(tick)))
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_WIDTH - _RIGHT, _HEIGHT - 4, x_label)
    )
    parts += [path(points, "raw"), path(smooth, "smooth")]
    svg = '<svg viewBox="0 0 {} {}" role="img" aria-label="{} over {}">{}</svg>'
    return Markup(svg).format(_WIDTH, _HEIGHT, y_label, x_label, Markup("").join(parts))


def _moving_average(points: Sequence[tuple[float, float]], over: int) -> list[tuple[float, float]]:
    averaged, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - over][1] if i >= over else 0.0)
        averaged.append((x, total / min(i + 1, over)))
    return averaged


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span the range."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.floor(low / step)
    return [step * i for i in range(first, math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in ((1, 2, 5) if len(decades) <= 4 else (1,))]
    inside = [t for t in ticks if low / 1.3 <= t <= high * 1.3]
    return inside or [low, high]


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}"
    return f"{value:,.10g}" if abs(value) < 1 else f"{value:,.6g}"
