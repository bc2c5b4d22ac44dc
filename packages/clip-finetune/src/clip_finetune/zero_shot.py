"""A linear head out of class names: the rows are what the text tower makes of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from clip_data import SourceConfig, Tokenizer
from clip_models import ClipConfig
from clip_sharding import MeshConfig, make_mesh
from clip_train.evaluate import Encoders, EvaluationConfig, Prompts, class_embeds, read_prompts
from clip_train.inputs import data_config


def find_prompts(
    classnames: tuple[str, ...], templates: Any, source: SourceConfig, *, plain: str = "a photo of a {c}."
) -> Prompts:
    """The class names with the templates that are given, that lie beside the shards, or a plain one.

    Args:
        classnames: in label order.
        templates: as in an evaluation; `None` looks beside the shards.
        source: the labelled samples.
        plain: the plain one.

    Raises:
        ValueError: the templates cannot be read, or do not belong to the classes.
    """
    config: dict[str, Any] = {"name": "prompts", "task": "zeroshot_classification", "data": source}
    try:
        return read_prompts(EvaluationConfig(**config, classnames=classnames, templates=templates))
    except ValueError:
        if templates is not None:
            raise
        return Prompts(classnames, (plain,))


def zero_shot_head(config: ClipConfig, params: Any, prompts: Prompts, *, multi_label: bool) -> dict[str, np.ndarray]:
    """The head that compares embeddings with the classes in words, at the model's scale.

    Args:
        config: the model, with a text tower and the one that classifies.
        params: its parameters.
        prompts: class names and sentences.
        multi_label: whether its bias counts: it does for several labels, whose probabilities are sigmoids.

    Returns:
        `kernel` float32 `[e, c]` and `bias` float32 `[c]`.

    Raises:
        ValueError: the model has no text tower, or no tokenizer.
    """
    tokenizer = None if config.text is None else Tokenizer.of(data_config(config))
    if tokenizer is None:
        lacking = "text tower" if config.text is None else "tokenizer"
        raise ValueError(f"a zero-shot head is made of class names in words, and the model has no {lacking}")
    encoders = Encoders(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    classes = class_embeds(encoders, params, prompts, tokenizer)
    bias = float(params.get("logit_bias", 0.0)) if multi_label else 0.0
    return {
        # A tower alone has no scale of its own: the one that its kind begins with.
        "kernel": classes.T * np.exp(np.float32(params.get("logit_scale", config.logit_scale_init))),
        "bias": np.full(len(classes), bias, np.float32),
    }
