"""A tower out of any checkpoint, and what it makes of pictures or texts."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from clip_finetune.config import FeatureKind
from clip_models import ClipConfig, encode_text, image_features, project_image, text_features
from clip_models.clip import Features
from clip_train.inputs import image_inputs
from clip_train.weights import open_weights

Tower = Literal["vision", "text"]
_KINDS: dict[Tower, str] = {"vision": "image", "text": "text"}


def load_backbone(model: str, *, tower: Tower = "vision") -> tuple[ClipConfig, Any]:
    """Open a checkpoint.

    Args:
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        tower: that it must have.

    Returns:
        `(config, params)`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one of ours, nor of a kind that `load_pretrained` knows; or it has no such tower.
    """
    config, load = open_weights(model)
    if getattr(config, tower) is None:
        what = {"vision": "images", "text": "texts"}[tower]
        kind = _KINDS[tower]
        raise ValueError(
            f"{what} are classified by {'an' if kind[0] == 'i' else 'a'} {kind} tower, and {model} has none"
        )
    return config, load(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def tower_of(config: ClipConfig) -> Tower:
    """The one tower of a config that has one."""
    return "text" if config.vision is None else "vision"


def tower_alone(config: ClipConfig, tower: Tower) -> ClipConfig:
    """The config of one of a model's towers."""
    if tower == "text":
        return dataclasses.replace(config, vision=None, decoder=None, projection_dim=config.text_projection_dim)
    preprocess = dataclasses.replace(config.preprocess, tokenizer=None)
    return dataclasses.replace(config, text=None, decoder=None, preprocess=preprocess)


def tower_inputs(config: ClipConfig, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What a tower takes, of what a batch of samples holds: pictures are normalised, texts are as they are."""
    return arrays if tower_of(config) == "text" else image_inputs(config, arrays)


def run_tower(config: ClipConfig, params: Any, inputs: dict[str, jax.Array], key: jax.Array | None = None) -> Features:
    """The tower up to its pooled vector.

    Args:
        config: of one tower.
        params: with it.
        inputs: as `tower_inputs` makes them, or `clip_models.preprocess_images`.
        key: of what training drops at random.

    Returns:
        Pooled and hidden vectors, and a mask that is false at hidden vectors of padding, of texts too.
    """
    if tower_of(config) == "vision":
        return image_features(config, params, key=key, **inputs)  # pyright: ignore[reportArgumentType]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    features = text_features(config, params, ids, mask if config.preprocess.mask_padding else None, key=key)
    return features._replace(mask=mask > 0)


def tower_features(
    config: ClipConfig, params: Any, inputs: dict[str, jax.Array], kind: FeatureKind, key: jax.Array | None = None
) -> jax.Array:
    """What a linear head sees of pictures or texts.

    Args:
        config: of one tower.
        params: with it.
        inputs: as `run_tower` takes them.
        kind: the `embedding`, unit-norm after the projection; `pooled`, unit-norm before it; the `mean` of the last
            vectors, those of patches or tokens; or both side by side.
        key: of what training drops at random.

    Returns:
        float32 `[b, f]`.

    References:
        Oquab et al., DINOv2, arXiv 2304.07193, probes a pooled token beside the mean of the others.
    """
    if kind == "embedding" and tower_of(config) == "text":
        mask = inputs["attention_mask"] if config.preprocess.mask_padding else None
        return encode_text(config, params, inputs["input_ids"], mask, key=key)
    features = run_tower(config, params, inputs, key)
    if kind == "embedding":
        return project_image(config, params, features.pooled)
    parts = []
    if kind != "mean":
        parts.append(features.pooled / jnp.linalg.norm(features.pooled, axis=-1, keepdims=True))
    if kind != "pooled":
        parts.append(mean_of_last(config, features))
    return jnp.concatenate(parts, axis=-1)


def feature_width(config: ClipConfig, kind: FeatureKind) -> int:
    """How many numbers `tower_features` gives of each picture or text."""
    if kind == "embedding":
        return config.embed_dim
    tower: Any = getattr(config, tower_of(config))
    return {"pooled": tower.pooled_dim, "mean": tower.width, "pooled+mean": tower.pooled_dim + tower.width}[kind]


def mean_of_last(config: ClipConfig, features: Features) -> jax.Array:
    """The mean of a tower's last vectors, as transformers' classifiers take it: float32 `[b, d]`.

    Args:
        config: of the tower; where it has a class token, that is left out.
        features: from `run_tower`.
    """
    first = int(config.vision is not None and bool(config.vision.class_token))
    hidden = features.hidden[:, first:].astype(jnp.float32)
    if features.mask is None:
        return hidden.mean(axis=1)
    weights = features.mask[:, first:].astype(jnp.float32)[..., None]
    return (hidden * weights).sum(axis=1) / weights.sum(axis=1)
