"""WiSE-FT: weights between those before tuning and those after it, which forget less and may know more than either.

References:
    Wortsman et al., Robust fine-tuning of zero-shot models, arXiv 2109.01903.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

Curve = tuple[tuple[float, float], ...]
"""For each alpha, what was measured there."""


def interpolate(start: Any, end: Any, alpha: float) -> Any:
    """The point between two trees of arrays: `(1 − alpha) · start + alpha · end`."""
    return jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, start, end)


def curve_between(start: Any, end: Any, alphas: Sequence[float], measure: Callable[[Any], float]) -> Curve:
    """What is measured at some points between two trees.

    Args:
        start: of alpha 0.
        end: of alpha 1.
        alphas: where to look.
        measure: of a tree.
    """
    return tuple((alpha, measure(interpolate(start, end, alpha))) for alpha in alphas)


def best_between(
    start: Any, end: Any, alphas: Sequence[float], measure: Callable[[Any], float]
) -> tuple[Any, float, Curve]:
    """The best of some points between two trees.

    Args:
        start: of alpha 0.
        end: of alpha 1.
        alphas: where to look.
        measure: of a tree; higher is better.

    Returns:
        The best tree, its alpha, and the curve; of equally good ones the first.
    """
    curve = curve_between(start, end, alphas, measure)
    alpha = max(curve, key=lambda point: point[1])[0]
    return interpolate(start, end, alpha), alpha, curve
