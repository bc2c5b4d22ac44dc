"""Zero-shot classification: pictures against the classes in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from clip_data import Batch, Tokenizer
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.prompts import Prompts
from clip_train.evaluate.result import Result
from clip_train.metrics import classification_metrics, confusion_matrix


def zero_shot(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    prompts: Prompts,
    tokenizer: Tokenizer,
    *,
    name: str = "zeroshot",
) -> Result:
    """Classify pictures by the nearest class in words.

    Each class is the mean of its prompts' unit-norm embeddings, normalised again.

    Args:
        encoders: the towers.
        params: of the model.
        batches: with `label`; rows whose `mask` is false are left out.
        prompts: class names, in label order, and templates.
        tokenizer: the model's.
        name: of the result.

    Raises:
        ValueError: a sample has no label, or one that is no class.

    References:
        Radford et al., arXiv 2103.00020, §3.1.4, for prompt ensembling.
    """
    num_classes, num_templates = len(prompts.classnames), len(prompts.templates)
    sentences = [sentence for classname in prompts.classnames for sentence in prompts.of(classname)]
    embeds = encoders.texts(params, tokenizer, sentences, batch_size=1024)
    classes = embeds.reshape(num_classes, num_templates, -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)

    logits, labels = [], []
    for batch in batches:
        labels.append(labels_of(batch, num_classes))
        logits.append(encoders.images(params, batch) @ classes.T)
    scores, truth = encoders.gather(np.concatenate(logits)), encoders.gather(np.concatenate(labels))
    return Result(
        name=name,
        task="zeroshot_classification",
        num_samples=len(truth),
        metrics=classification_metrics(scores, truth),
        classnames=prompts.classnames,
        confusion=confusion_matrix(scores.argmax(axis=1), truth, num_classes),
    )


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
