"""A classifier on held-out samples: its logits, its metrics, and the mistakes it was surest of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_finetune.classifier import Classifier
from clip_finetune.samples import Samples
from clip_train.evaluate import score_metrics
from clip_train.inputs import data_config, image_arrays, pictures_of
from clip_train.metrics import calibration_error


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A picture that was taken for something else.

    Attributes:
        image: uint8 `[h, w, 3]`.
        key: of the sample.
        label: its class.
        predicted: what it was taken for.
        probability: given to that.
    """

    image: np.ndarray
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


def judge(classifier: Classifier, params: Any, samples: Samples, *, batch_size: int, num_mistakes: int = 0) -> Verdict:
    """Run a classifier over samples, each once.

    Args:
        classifier: which.
        params: its.
        samples: labelled.
        batch_size: pictures at once.
        num_mistakes: how many to keep.
    """
    run = _compiled(classifier)
    logits, targets = [], []
    mistakes: list[Mistake] = []
    with samples.pipeline(data_config(classifier.config, tokenizer=None), batch_size=batch_size) as pipeline:
        for batch in pipeline:
            if not batch.mask.any():
                continue
            logits.append(np.asarray(run(params, image_arrays(batch)))[batch.mask])
            targets.append(samples.targets(batch))
            if num_mistakes and not samples.multi_label:
                keys = [batch.key[i] for i in np.flatnonzero(batch.mask)]
                mistakes += _mistakes(classifier, logits[-1], targets[-1], pictures_of(batch), keys)
                mistakes.sort(key=lambda mistake: -mistake.probability)
                del mistakes[num_mistakes:]
        faults, recent = dict(pipeline.faults), tuple(str(fault) for fault in pipeline.recent_faults)
    if not logits:
        raise ValueError(
            f"no sample of {samples.source.shards} is in this part of the split; give more, or a larger share"
        )
    return Verdict(np.concatenate(logits), np.concatenate(targets), tuple(mistakes), faults, recent)


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


@functools.lru_cache(maxsize=4)
def _compiled(classifier: Classifier) -> Callable[..., jax.Array]:
    # The same function for the same classifier: another one would compile again at each epoch.
    return jax.jit(classifier.logits)


def _mistakes(
    classifier: Classifier, logits: np.ndarray, labels: np.ndarray, pictures: list[np.ndarray], keys: list[str]
) -> list[Mistake]:
    probabilities, predicted = classifier.probabilities(logits), logits.argmax(axis=1)
    return [
        Mistake(pictures[i], keys[i], int(labels[i]), int(predicted[i]), float(probabilities[i, predicted[i]]))
        for i in np.flatnonzero(predicted != labels)
    ]
