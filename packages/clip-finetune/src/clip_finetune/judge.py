"""A classifier on held-out samples: its logits, its metrics, and the mistakes it was surest of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from clip_finetune.classifier import Classifier
from clip_finetune.features import OverDevices
from clip_finetune.samples import Labelled, Rows, no_sample
from clip_train.evaluate import score_metrics
from clip_train.metrics import calibration_error


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A sample that was taken for something else.

    Attributes:
        shown: a picture uint8 `[h, w, 3]`, or a text.
        key: of the sample.
        label: its class.
        predicted: what it was taken for.
        probability: given to that.
    """

    shown: np.ndarray | str
    key: str
    label: int
    predicted: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found on held-out samples.

    Attributes:
        logits: float32 `[n, c]`.
        targets: int32 `[n]`, or multi-hot `[n, c]`.
        mistakes: the surest ones, surest first; none with several labels.
        faults: how many samples could not be used, by reason.
        unusable: the latest of those, in words.
    """

    logits: np.ndarray
    targets: np.ndarray
    mistakes: tuple[Mistake, ...]
    faults: dict[str, int]
    unusable: tuple[str, ...]


def judge(classifier: Classifier, params: Any, samples: Labelled, *, batch_size: int, num_mistakes: int = 0) -> Verdict:
    """Run a classifier over samples, each once.

    Args:
        classifier: which.
        params: its.
        samples: labelled.
        batch_size: samples at once.
        num_mistakes: how many to keep.

    Raises:
        ValueError: there is no sample, or one has no label, or one that is no class.
        DataError: too many cannot be used.
    """
    run = OverDevices(classifier.logits, params)
    logits, targets = [], []
    mistakes: list[Mistake] = []
    with samples.read(classifier.config, batch_size=run.batch_size(batch_size)) as reader:
        for rows in reader:
            logits.append(run(rows.arrays)[rows.mask])
            targets.append(rows.targets)
            if num_mistakes and not samples.multi_label:
                mistakes += _mistakes(classifier, logits[-1], rows)
                mistakes.sort(key=lambda mistake: -mistake.probability)
                del mistakes[num_mistakes:]
        faults, unusable = reader.faults, reader.unusable
    if not logits:
        raise no_sample(samples)
    return Verdict(np.concatenate(logits), np.concatenate(targets), tuple(mistakes), faults, unusable)


def verdict_metrics(classifier: Classifier, verdict: Verdict) -> dict[str, float]:
    """CLIP_benchmark's metrics and, with one label, the calibration error."""
    metrics = score_metrics(verdict.logits, verdict.targets)
    if not classifier.multi_label:
        probabilities = classifier.probabilities(verdict.logits)
        metrics["calibration_error"] = calibration_error(probabilities, verdict.targets)
    return metrics


def choice(metrics: dict[str, float]) -> float:
    """The one metric that choices are made by."""
    return metrics["mean_average_precision"] if "mean_average_precision" in metrics else metrics["acc1"]


def _mistakes(classifier: Classifier, logits: np.ndarray, rows: Rows) -> list[Mistake]:
    probabilities, predicted = classifier.probabilities(logits), logits.argmax(axis=1)
    shown = rows.shown()
    return [
        Mistake(shown[i], rows.keys[i], int(rows.targets[i]), int(predicted[i]), float(probabilities[i, predicted[i]]))
        for i in map(int, np.flatnonzero(predicted != rows.targets))
    ]
