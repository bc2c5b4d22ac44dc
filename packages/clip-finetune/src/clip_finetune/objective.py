"""What fine-tuning minimises, in the form that `clip_train` trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_train import LossFn

SampleLoss = Callable[[jax.Array, jax.Array], jax.Array]


def sample_loss(
    num_classes: int, *, class_weights: tuple[float, ...] | None = None, label_smoothing: float = 0.0
) -> SampleLoss:
    """The loss of each sample: softmax cross-entropy, or the mean of sigmoids for several labels.

    Args:
        num_classes: c.
        class_weights: a sample counts by its class's; with several labels, each label's part does.
        label_smoothing: share of a target that is spread over all classes; of several labels, halfway to one half.

    Returns:
        `(logits [b, c], targets) -> [b]`, where targets are int `[b]`, or multi-hot `[b, c]`; the same object for the
        same arguments.

    Example:
        >>> loss = sample_loss(2, class_weights=(1.0, 3.0))
        >>> loss(jnp.zeros((2, 2)), jnp.array([0, 1])).round(4).tolist()
        [0.693..., 2.079...]
    """
    return _sample_loss(num_classes, class_weights, label_smoothing)


@functools.cache
def _sample_loss(num_classes: int, class_weights: tuple[float, ...] | None, label_smoothing: float) -> SampleLoss:
    weights = np.ones(num_classes, np.float32) if class_weights is None else np.asarray(class_weights, np.float32)

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if targets.ndim == 2:
            smooth = targets * (1 - label_smoothing) + label_smoothing / 2
            return (optax.sigmoid_binary_cross_entropy(logits, smooth) * weights).mean(axis=-1)
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, num_classes), label_smoothing)
        return optax.softmax_cross_entropy(logits, smooth) * jnp.asarray(weights)[targets]

    return loss


def classification_loss(apply: Callable[[Any, Any, jax.Array], jax.Array], loss: SampleLoss) -> LossFn:
    """The mean loss of a classifier.

    Args:
        apply: `(params, batch, key) -> logits [b, c]`.
        loss: of each sample.

    Returns:
        A `LossFn` on batches with `target`, int32 `[b]` or multi-hot `[b, c]`; its metric is `accuracy`: of the class,
        or of each label.
    """

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, target = apply(params, batch, key), batch["target"]
        right = (logits > 0) == (target > 0) if target.ndim == 2 else logits.argmax(axis=-1) == target
        return loss(logits, target).mean(), {"accuracy": right.mean()}

    return loss_fn
