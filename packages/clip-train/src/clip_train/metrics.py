"""Metrics of a classifier's scores, in numpy: accuracy, recall, precision, calibration, confusion.

References:
    CLIP_benchmark's `zeroshot_classification.py`, whose names are kept. Accuracies and recalls are its numbers. Mean
    average precision is its in double precision; where scores are equal, its sort leaves them in an order that depends
    on the processor.
"""

from __future__ import annotations

import numpy as np

from clip_train.top_k import top_k

FloatArray = np.ndarray
IntArray = np.ndarray


def check_finite(values: FloatArray, what: str) -> None:
    """Refuse what is not finite: every comparison with NaN is false, which would pass for the first rank.

    Args:
        values: float `[n, ...]`.
        what: its rows are, in the plural.

    Raises:
        ValueError: saying of how many rows.
    """
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if wrong.size:
        raise ValueError(
            f"{what} are finite numbers; {wrong.size:,} of {len(values):,} are not (the first is number {wrong[0]}, "
            f"from 0): look for NaN in the weights, and whether float32 computes the same"
        )


def classification_metrics(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    """How often the right class comes first or in the first five; among equal logits as CLIP_benchmark orders them.

    Args:
        logits: float `[n, c]`.
        labels: int `[n]`, in [0, c).

    Returns:
        `acc1`, `acc5` (only with five classes or more), `mean_per_class_recall` over the classes that occur.

    Raises:
        ValueError: a logit is not finite.

    Example:
        >>> logits = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
        >>> classification_metrics(logits, np.array([0, 1, 1]))
        {'acc1': 0.6666666666666666, 'mean_per_class_recall': 0.75}
    """
    check_finite(logits, "a classifier's logits")
    num_classes = logits.shape[1]
    # It asks for the five best at once: the first of them is the first for acc1 too.
    num_best = 5 if num_classes >= 5 else 1
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    num_above, num_equal = (logits > true).sum(axis=1), (logits == true).sum(axis=1)
    first, among_best = num_above < 1, num_above < num_best
    for row in np.flatnonzero((num_equal > 1) & among_best):
        place = np.flatnonzero(top_k(logits[row], num_best) == labels[row])
        first[row], among_best[row] = (place == 0).any(), place.size > 0
    metrics = {"acc1": float(first.mean())}
    if num_classes >= 5:
        metrics["acc5"] = float(among_best.mean())
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[logits.argmax(axis=1) == labels], minlength=num_classes)
    metrics["mean_per_class_recall"] = float((right[counts > 0] / counts[counts > 0]).mean())
    return metrics


def mean_average_precision(scores: FloatArray, targets: np.ndarray) -> float:
    """The mean over the classes of the precision at each of a class's samples, as several labels are judged.

    Args:
        scores: float `[n, c]`, higher where the class is likelier; among equal ones the earlier sample comes first.
        targets: bool or int `[n, c]`, which classes a sample has; a class without samples counts as zero.

    Raises:
        ValueError: a score is not finite.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.5, 0.8], [0.7, 0.2]])
        >>> round(mean_average_precision(scores, np.array([[1, 0], [1, 1], [0, 0]])), 4)
        0.9167
    """
    check_finite(scores, "a classifier's scores")
    order = np.argsort(-scores, axis=0, kind="stable")
    truth = np.take_along_axis(targets.astype(bool), order, axis=0)
    precision = np.cumsum(truth, axis=0) / np.arange(1, len(scores) + 1)[:, None]
    return float((np.where(truth, precision, 0).sum(axis=0) / np.maximum(truth.sum(axis=0), 1)).mean())


def calibration_error(probabilities: FloatArray, labels: IntArray, *, num_bins: int = 15) -> float:
    """How far confidence is from accuracy: the mean gap over bins of equal width, weighted by their samples.

    Args:
        probabilities: float `[n, c]`, rows that sum to 1.
        labels: int `[n]`.
        num_bins: of the confidence, the largest probability.

    Raises:
        ValueError: a probability is not finite.

    References:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.

    Example:
        >>> calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
        0.4
    """
    check_finite(probabilities, "a classifier's probabilities")
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, confidence - right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


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
