"""Metrics from embeddings, in numpy: accuracy, recall, confusion. Nothing here runs a model.

References:
    CLIP_benchmark's `zeroshot_classification.py` and `zeroshot_retrieval.py`, whose names are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FloatArray = np.ndarray
IntArray = np.ndarray


def classification_metrics(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    """How often the right class comes first or in the first five.

    Args:
        logits: float `[n, c]`.
        labels: int `[n]`, in [0, c).

    Returns:
        `acc1`, `acc5` (only with five classes or more), `mean_per_class_recall` over the classes that occur.

    Example:
        >>> logits = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
        >>> classification_metrics(logits, np.array([0, 1, 1]))
        {'acc1': 0.6666666666666666, 'mean_per_class_recall': 0.75}
    """
    num_classes = logits.shape[1]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    hits = order == labels[:, None]
    metrics = {"acc1": float(hits[:, 0].mean())}
    if num_classes >= 5:
        metrics["acc5"] = float(hits.any(axis=1).mean())
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[hits[:, 0]], minlength=num_classes)
    metrics["mean_per_class_recall"] = float((right[counts > 0] / counts[counts > 0]).mean())
    return metrics


def confusion_matrix(predicted: IntArray, labels: IntArray, num_classes: int) -> IntArray:
    """Counts `[c, c]`: row the true class, column the predicted one.

    Args:
        predicted: int `[n]`.
        labels: int `[n]`.
        num_classes: c.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def recall_at(scores: FloatArray, positives: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """The share of queries with at least one positive among their k best.

    Args:
        scores: float `[q, n]`, higher is better.
        positives: bool `[q, n]`.
        ks: how many to look at.

    Returns:
        Recall for each k; queries without any positive are left out.

    Example:
        >>> scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.1, 0.3]])
        >>> recall_at(scores, np.array([[True, False, False], [True, False, False]]), (1, 2))
        {1: 0.5, 2: 1.0}
    """
    asked = positives.any(axis=1)
    order = np.argsort(-scores[asked], axis=1, kind="stable")[:, : max(ks)]
    hits = np.take_along_axis(positives[asked], order, axis=1)
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in ks}
