"""A linear probe on the image embeddings, as CLIP_benchmark judges a tower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_data import Batch
from clip_train.evaluate.classification import labels_of, score_metrics, targets_of
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.result import Result
from clip_train.metrics import confusion_matrix
from clip_train.probe import ProbeConfig, fit_probe, probe_logits, sweep_weight_decay


def linear_probe(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    train: Iterable[Batch],
    config: ProbeConfig,
    *,
    classnames: tuple[str, ...],
    validation: Iterable[Batch] | None = None,
    multi_label: bool = False,
    name: str = "linear_probe",
) -> Result:
    """Train a linear classifier on unit-norm image embeddings, and judge it on others.

    Its weight decay, or penalty, is chosen on the validation samples, which it then learns from too; without them it is
    what the config says, or 0.

    Args:
        encoders: of the image tower.
        params: of the model.
        batches: to judge by; with `label`, or the lists of `AllLabels` in `caption`.
        train: to learn from.
        config: of the training.
        classnames: in label order.
        validation: to choose the weight decay by.
        multi_label: whether a sample has several labels.
        name: of the result.

    References:
        CLIP_benchmark's `linear_probe.py`. OpenAI's own probe is on features before the projection.
    """
    num_classes = len(classnames)

    def embed(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        of = targets_of if multi_label else labels_of
        pairs = [(encoders.images(params, batch), of(batch, num_classes)) for batch in batches]
        features, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return encoders.gather(features), encoders.gather(targets)

    features, targets = embed(train)
    decay = config.weight_decay
    if validation is not None:
        held_out = embed(validation)
        if decay is None:
            decay = sweep_weight_decay(features, targets, held_out, config, num_classes=num_classes)
        features, targets = (np.concatenate(parts) for parts in zip((features, targets), held_out, strict=True))
    decay = 0.0 if decay is None else decay
    probe = fit_probe(features, targets, config, num_classes=num_classes, weight_decay=decay)
    embeds, truth = embed(batches)
    scores = probe_logits(probe, embeds)
    metrics = score_metrics(scores, truth)
    if not multi_label and truth.max() < 5:  # CLIP_benchmark's rule here, which goes by the labels that occur
        metrics.pop("acc5", None)
    return Result(
        name=name,
        task="linear_probe",
        num_samples=len(truth),
        metrics={f"lp_{metric}": value for metric, value in metrics.items()},
        settings={
            "weight_decay": decay,
            **({"epochs": config.epochs} if config.solver == "adamw" else {}),
            "seed": 0,
            "fewshot_k": -1,
            "normalized": True,
        },
        classnames=classnames,
        confusion=None if multi_label else confusion_matrix(scores.argmax(axis=1), truth, num_classes),
    )
