"""Inner products of embeddings, in numpy: equal items score equally."""

from __future__ import annotations

import numpy as np

from clip_train.metrics import check_finite


class Similarity:
    """Inner products with some items, each distinct one multiplied once.

    A matrix product sums the columns at its edge in another order: two equal items of many may come out a last digit
    apart, which would decide ties between equal captions or class names by where they stand.

    Args:
        items: float32 `[n, e]`.

    Raises:
        ValueError: an item is not finite.

    Example:
        >>> Similarity(np.float32([[1, 0], [0, 1], [1, 0]]))(np.float32([[2, 3]])).tolist()
        [[2.0, 3.0, 2.0]]
    """

    def __init__(self, items: np.ndarray) -> None:
        check_finite(items, "embeddings")
        first: dict[bytes, int] = {}
        place = np.array([first.setdefault(item.tobytes(), len(first)) for item in items], int)
        self._place = None if len(first) == len(items) else place
        self._distinct = items if self._place is None else items[np.unique(place, return_index=True)[1]]

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """The product of each query with each item.

        Args:
            queries: float32 `[q, e]`.

        Returns:
            float32 `[q, n]`.

        Raises:
            ValueError: a query is not finite.
        """
        check_finite(queries, "embeddings")
        scores = queries @ self._distinct.T
        return scores if self._place is None else scores[:, self._place]
