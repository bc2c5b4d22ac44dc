"""Zero-shot classification: pictures against the classes in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_data import Batch, Tokenizer
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.prompts import Prompts
from clip_train.evaluate.result import Result
from clip_train.evaluate.targets import lists, multi_hot
from clip_train.metrics import classification_metrics, confusion_matrix, mean_average_precision
from clip_train.similarity import Similarity


def zero_shot(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    prompts: Prompts,
    tokenizer: Tokenizer,
    *,
    multi_label: bool = False,
    name: str = "zeroshot",
) -> Result:
    """Classify pictures by the nearest class in words.

    Args:
        encoders: the towers.
        params: of the model.
        batches: with `label`, or the lists of `AllLabels` in `caption`; rows whose `mask` is false are left out.
        prompts: class names, in label order, and templates.
        tokenizer: the model's.
        multi_label: whether a sample has several labels: it is judged by mean average precision.
        name: of the result.

    Raises:
        ValueError: a sample has no label, or one that is no class; or an embedding is not finite.
    """
    num_classes = len(prompts.classnames)
    similarity = Similarity(class_embeds(encoders, params, prompts, tokenizer))
    logits, targets = [], []
    for batch in batches:
        targets.append(targets_of(batch, num_classes) if multi_label else labels_of(batch, num_classes))
        logits.append(similarity(encoders.images(params, batch)))
    scores, truth = encoders.gather(np.concatenate(logits)), encoders.gather(np.concatenate(targets))
    return Result(
        name=name,
        task="zeroshot_classification",
        num_samples=len(truth),
        metrics=score_metrics(scores, truth),
        classnames=prompts.classnames,
        confusion=None if multi_label else confusion_matrix(scores.argmax(axis=1), truth, num_classes),
    )


def class_embeds(encoders: Encoders, params: Any, prompts: Prompts, tokenizer: Tokenizer) -> np.ndarray:
    """Each class as the mean of its sentences' unit-norm embeddings, normalised again: float32 `[c, e]`.

    Args:
        encoders: of the text tower.
        params: of the model.
        prompts: class names and templates.
        tokenizer: the model's.

    References:
        Radford et al., arXiv 2103.00020, §3.1.4, for prompt ensembling.
    """
    sentences = [prompts.of(classname) for classname in prompts.classnames]
    embeds = encoders.texts(params, tokenizer, [text for texts in sentences for text in texts], batch_size=1024)
    ends = np.cumsum([len(texts) for texts in sentences])[:-1]
    classes = np.stack([part.mean(axis=0) for part in np.split(embeds, ends)])
    return classes / np.linalg.norm(classes, axis=-1, keepdims=True)


def score_metrics(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """CLIP_benchmark's metrics of a classifier: accuracies, or mean average precision of multi-hot targets.

    Args:
        scores: float `[n, c]`.
        targets: int `[n]`, or multi-hot `[n, c]`.
    """
    if targets.ndim == 2:
        return {"mean_average_precision": mean_average_precision(scores, targets)}
    return classification_metrics(scores, targets)


def targets_of(batch: Batch, num_classes: int) -> np.ndarray:
    """The labels of a batch's real rows, whose captions are the lists of `AllLabels`: multi-hot int32 `[n, c]`.

    Raises:
        ValueError: a label is no class.
    """
    return multi_hot(lists(batch.caption, batch.mask), num_classes)


def labels_of(batch: Batch, num_classes: int) -> np.ndarray:
    """The labels of a batch's real rows, int32 `[n]`.

    Raises:
        ValueError: a sample has no label, or one that is no class.
    """
    if not batch.mask.any():  # as of one of several processes, where the samples end in another's part
        return np.zeros(0, np.int32)
    labels = None if batch.label is None else batch.label[batch.mask]
    if labels is None or (labels < 0).any():
        raise ValueError("classification needs an integer label with every sample; set label_key to its field")
    if (largest := labels.max(initial=0)) >= num_classes:
        raise ValueError(f"labels go from 0 to {num_classes - 1} for {num_classes} class names; got {largest}")
    return labels
