"""A tower out of any checkpoint, and the features that it gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_finetune.config import FeatureKind
from clip_finetune.samples import Samples
from clip_models import ClipConfig, image_features, project_image
from clip_train.inputs import data_config, image_arrays, image_inputs
from clip_train.weights import open_weights


def load_backbone(model: str) -> tuple[ClipConfig, Any]:
    """Open a checkpoint.

    Args:
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.

    Returns:
        `(config, params)`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of ours, nor of a kind that `load_pretrained` knows; or it has no image tower.
    """
    config, load = open_weights(model)
    if config.vision is None:
        raise ValueError(f"images are classified by an image tower, and {model} has none")
    return config, load(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def tower_features(
    config: ClipConfig, params: Any, inputs: dict[str, jax.Array], kind: FeatureKind, key: jax.Array | None = None
) -> jax.Array:
    """What a linear head sees of pictures.

    Args:
        config: the model.
        params: with the image tower.
        inputs: as `image_inputs` makes them.
        kind: the `embedding`, unit-norm after the projection; `pooled`, unit-norm before it; the `mean` of the last
            vectors, those of patches; or both side by side.
        key: of what training drops at random.

    Returns:
        float32 `[b, f]`.

    References:
        Oquab et al., DINOv2, arXiv 2304.07193, probes a pooled token beside the mean of the others.
    """
    features = image_features(config, params, key=key, **inputs)  # pyright: ignore[reportArgumentType]
    if kind == "embedding":
        return project_image(config, params, features.pooled)
    parts = []
    if kind != "mean":
        parts.append(features.pooled / jnp.linalg.norm(features.pooled, axis=-1, keepdims=True))
    if kind != "pooled":
        parts.append(mean_of_patches(config, features.hidden, inputs.get("pixel_attention_mask")))
    return jnp.concatenate(parts, axis=-1)


def mean_of_patches(config: ClipConfig, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of the last vectors, as transformers' classifiers take it: float32 `[b, d]`.

    Args:
        config: the model; where it has a class token, that is left out.
        hidden: `[b, p, d]`.
        mask: `[b, p]` of sequences of patches, 0 at padding.
    """
    vision = config.vision
    if vision is not None and vision.class_token:
        hidden = hidden[:, 1:]
    hidden = hidden.astype(jnp.float32)
    if mask is None:
        return hidden.mean(axis=1)
    weights = mask.astype(jnp.float32)[..., None]
    return (hidden * weights).sum(axis=1) / weights.sum(axis=1)


def labelled_features(
    config: ClipConfig, params: Any, samples: Samples, *, kind: FeatureKind = "pooled", batch_size: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """What the image tower makes of every sample, once.

    Args:
        config: the model.
        params: its parameters.
        samples: labelled.
        kind: as in `tower_features`.
        batch_size: images at once.

    Returns:
        Features float32 `[n, f]`; targets int32 `[n]`, or multi-hot `[n, c]`; and how many pictures could not be used,
        by reason.

    Raises:
        ValueError: a sample has no label, or one that is no class.
        DataError: too many cannot be used.
    """
    encode = jax.jit(lambda params, arrays: tower_features(config, params, image_inputs(config, arrays), kind))
    features, targets = [], []
    with samples.pipeline(data_config(config, tokenizer=None), batch_size=batch_size) as pipeline:
        for batch in pipeline:
            if batch.mask.any():
                targets.append(samples.targets(batch))
                features.append(np.asarray(encode(params, image_arrays(batch)))[batch.mask])
        faults = dict(pipeline.faults)
    if not features:
        raise ValueError(
            f"no sample of {samples.source.shards} is in this part of the split; give more, or a larger share"
        )
    return np.concatenate(features), np.concatenate(targets), faults
