"""What fine-tuning minimises, in the form that `clip_train` trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_train import LossFn


def classification_loss(apply: Callable[[Any, jax.Array], jax.Array]) -> LossFn:
    """The mean cross-entropy of a classifier.

    Args:
        apply: `(params, features) -> logits`.

    Returns:
        A `LossFn` on batches with `features` float `[b, d]` and `label` int32 `[b]`; its metric is `accuracy`.
    """

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = apply(params, batch["features"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, {"accuracy": jnp.mean(logits.argmax(axis=-1) == batch["label"])}

    return loss_fn
