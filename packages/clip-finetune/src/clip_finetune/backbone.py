"""A tower out of any checkpoint, and the features that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_data import Pipeline, SourceConfig
from clip_models import ClipConfig, image_features, load_pretrained
from clip_train.augment import normalize
from clip_train.inputs import data_config
from clip_train.weights import is_run, load_run


def load_backbone(model: str) -> tuple[ClipConfig, Any]:
    """Open a checkpoint.

    Args:
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.

    Returns:
        `(config, params)`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of ours, nor of a kind that `load_pretrained` knows.
    """
    if is_run(model):
        return load_run(model)
    if Path(model).is_dir() and (Path(model) / "checkpoints").is_dir():
        raise FileNotFoundError(f"{model} holds no finished checkpoint of a run")
    return load_pretrained(model)


def labelled_features(
    config: ClipConfig, params: Any, source: SourceConfig, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the image tower makes of every labelled sample of a source, before the projection.

    Args:
        config: the model.
        params: its parameters.
        source: where the samples are.
        batch_size: images at once.

    Returns:
        Features float32 `[n, 2·d]`, the pooled vector at unit norm beside the mean of the last tokens, and labels int32
        `[n]`, in shard order.

    Raises:
        ValueError: a sample has no label.

    References:
        Oquab et al., DINOv2, arXiv 2304.07193, probes a pooled token beside the mean of the others.
    """
    expects = config.preprocess
    data = data_config(config, (source,), tokenizer=None, shuffle=False, num_epochs=1)

    @jax.jit
    def encode(params: Any, images: jax.Array) -> jax.Array:
        pooled, hidden, _ = image_features(config, params, normalize(images, mean=expects.mean, std=expects.std))
        pooled /= jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        return jnp.concatenate([pooled, hidden.astype(jnp.float32).mean(axis=1)], axis=-1)

    features, labels = [], []
    with Pipeline(data, global_batch_size=batch_size) as pipeline:
        for batch in pipeline:
            if batch.label is None or (batch.label[batch.mask] < 0).any():
                raise ValueError("every sample needs an integer label; set label_key to its field")
            features.append(np.asarray(encode(params, batch.image))[batch.mask])
            labels.append(batch.label[batch.mask])
    return np.concatenate(features), np.concatenate(labels)
