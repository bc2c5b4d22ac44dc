"""How well queries find their own among many, in numpy and in chunks: recall at k, mean and median rank.

References:
    CLIP_benchmark's `zeroshot_retrieval.py`, whose recalls these are, and open_clip's ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clip_train.similarity import Similarity
from clip_train.top_k import top_k

Positives = Callable[[slice], np.ndarray]
"""Which items are right for some queries: a slice of the queries to bool `[queries, items]`."""

_CHUNK_BYTES = 1 << 26


def ranking_metrics(
    queries: np.ndarray, items: np.ndarray, positives: Positives, ks: Sequence[int]
) -> dict[str, float]:
    """Rank all items for each query by their inner product, and look where the first right one comes.

    A chunk of queries is compared with all items at a time: memory does not grow with the number of queries.

    Args:
        queries: float32 `[q, e]`.
        items: float32 `[n, e]`.
        positives: which items are right; queries for which none is are left out.
        ks: a query counts as answered when a right item is among its k best, as `torch.topk` orders equal ones.

    Returns:
        `recall@k` for each k, `mean_rank` and `median_rank` of the first right item, from 1; among equal items it is
        put in the middle.

    Raises:
        ValueError: an embedding is not finite.

    Example:
        >>> pictures, texts = np.eye(2, dtype=np.float32), np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)
        >>> own = np.array([0, 1])
        >>> ranking_metrics(texts, pictures, lambda rows: own[rows, None] == own, (1, 2))
        {'recall@1': 0.5, 'recall@2': 1.0, 'mean_rank': 1.5, 'median_rank': 1.5}
    """
    similarity, answered, ranks = Similarity(items), [], []
    step = max(_CHUNK_BYTES // (4 * len(items)), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        right = positives(rows)
        asked = right.any(axis=1)
        scores, right = similarity(queries[rows])[asked], right[asked]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        num_above = (scores > best).sum(axis=1)
        equal = scores == best
        num_equal, num_wrong = equal.sum(axis=1), (equal & ~right).sum(axis=1)
        ranks.append(1 + num_above + num_wrong / 2)
        hits = np.stack([num_above < k for k in ks], axis=1)
        for i, k in enumerate(ks):
            # Only where right and wrong ones are equal, and not all of them fit, does their order matter.
            for row in np.flatnonzero((num_above < k) & (num_above + num_equal > k) & (num_wrong > 0)):
                hits[row, i] = right[row, top_k(scores[row], min(k, len(items)))].any()
        answered.append(hits)
    hits, rank = np.concatenate(answered), np.concatenate(ranks)
    # Single precision, in which CLIP_benchmark takes the mean.
    recalls = hits.sum(axis=0).astype(np.float32) / np.float32(len(hits))
    return {
        **{f"recall@{k}": float(recall) for k, recall in zip(ks, recalls, strict=True)},
        "mean_rank": float(rank.mean()),
        "median_rank": float(np.median(rank)),
    }
