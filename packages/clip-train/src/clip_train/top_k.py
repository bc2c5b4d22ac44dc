"""The k best of a row in the order in which `torch.topk` gives them on a CPU, equal scores included.

CLIP_benchmark's accuracies and recalls rest on that order wherever scores are equal. It is the order that libstdc++'s
`partial_sort`, for many scores to each wanted one, or `nth_element` leaves them in, retraced here step by step.
"""

from __future__ import annotations

import numpy as np

# Scores to each wanted one from which torch's topk sorts a heap.
_HEAP_FROM = 64

_Item = tuple[float, int]


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the k best scores, best first.

    Args:
        scores: float `[n]`, without NaN.
        k: how many, from 1 to n, and at most 17.

    Returns:
        int64 `[k]`.

    Example:
        >>> top_k(np.array([1.0, 3.0, 2.0]), 2).tolist()
        [1, 2]
        >>> top_k(np.zeros(8), 3).tolist()  # all are equal: neither the first three, nor in order
        [6, 5, 4]
    """
    if not 1 <= k <= min(len(scores), 17):
        raise ValueError(f"k is from 1 to the number of scores and at most 17; got {k} of {len(scores)}")
    if k * _HEAP_FROM <= len(scores):
        best = _partial_sort(scores, k)
    else:
        items = [(float(score), place) for place, score in enumerate(scores)]
        _nth_element(items, k - 1)
        # Up to sixteen are sorted by insertion, which leaves equal ones as they are.
        best = [*sorted(items[: k - 1], key=lambda item: -item[0]), items[k - 1]]
    return np.array([place for _, place in best])


def _partial_sort(scores: np.ndarray, k: int) -> list[_Item]:
    heap = [(float(score), place) for place, score in enumerate(scores[:k])]
    _make_heap(heap)
    place = k
    while place < len(scores):
        # The next score above the worst of the heap.
        above = scores[place:] > heap[0][0]
        step = int(above.argmax())
        if not above[step]:
            break
        place += step
        _sift_down(heap, 0, k, (float(scores[place]), place))
        place += 1
    for end in range(k - 1, 0, -1):
        last, heap[end] = heap[end], heap[0]
        _sift_down(heap, 0, end, last)
    return heap


def _make_heap(items: list[_Item]) -> None:
    for parent in range((len(items) - 2) // 2, -1, -1):
        _sift_down(items, parent, len(items), items[parent])


def _sift_down(items: list[_Item], hole: int, length: int, item: _Item) -> None:
    """Put an item into a heap whose root is the worst: the hole goes down to a leaf, and the item up from there."""
    top, child = hole, hole
    while child < (length - 1) // 2:
        child = 2 * (child + 1)
        if items[child][0] > items[child - 1][0]:
            child -= 1
        items[hole] = items[child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * (child + 1)
        items[hole] = items[child - 1]
        hole = child - 1
    while hole > top and items[(hole - 1) // 2][0] > item[0]:
        items[hole] = items[(hole - 1) // 2]
        hole = (hole - 1) // 2
    items[hole] = item


def _nth_element(items: list[_Item], nth: int) -> None:
    first, last = 0, len(items)
    depth = 2 * (len(items).bit_length() - 1)
    while last - first > 3:
        if depth == 0:
            _heap_select(items, first, nth + 1, last)
            items[first], items[nth] = items[nth], items[first]
            return
        depth -= 1
        cut = _partition(items, first, last)
        first, last = (cut, last) if cut <= nth else (first, cut)
    items[first:last] = sorted(items[first:last], key=lambda item: -item[0])


def _heap_select(items: list[_Item], first: int, middle: int, last: int) -> None:
    heap = items[first:middle]
    _make_heap(heap)
    for i in range(middle, last):
        if items[i][0] > heap[0][0]:
            item, items[i] = items[i], heap[0]
            _sift_down(heap, 0, len(heap), item)
    items[first:middle] = heap


def _partition(items: list[_Item], first: int, last: int) -> int:
    """Part a range by the median of three of its items, and return where the second part begins."""
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    median = sorted((a, b, c), key=lambda place: items[place][0])[1]
    items[first], items[median] = items[median], items[first]
    pivot = items[first][0]
    low, high = first + 1, last
    while True:
        while items[low][0] > pivot:
            low += 1
        high -= 1
        while pivot > items[high][0]:
            high -= 1
        if low >= high:
            return low
        items[low], items[high] = items[high], items[low]
        low += 1
