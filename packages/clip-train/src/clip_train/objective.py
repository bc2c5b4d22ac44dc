"""The seam between a model and the machine: what is minimised, as plain functions.

A `LossFn` is `(params, batch, key) -> (loss, metrics)`. A `ContrastiveObjective` is a `LossFn` in two halves, so that
exact accumulation can call them apart. `step` and `loop` know nothing else of the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_losses import sharded_sigmoid_loss, sharded_softmax_loss, sigmoid_loss, softmax_loss
from clip_models import ClipConfig, constrain_activations, encode_image, encode_text
from clip_sharding import BATCH_AXES, Rules, constraint
from clip_train.augment import AugmentConfig, augment
from clip_train.inputs import both_towers, image_inputs

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class ContrastiveObjective:
    """A loss over the whole batch of what a model makes of each row alone.

    Attributes:
        encode: `(params, batch, key) -> embeds`, a tree of float arrays `[b, ...]`; row i depends on row i only.
        loss: `(embeds, params) -> (loss, metrics)`, over all rows of the global batch.
    """

    encode: Callable[[Any, Any, jax.Array], Any]
    loss: Callable[[Any, Any], tuple[jax.Array, Metrics]]

    def __call__(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The two halves as one `LossFn`."""
        return self.loss(self.encode(params, batch, key), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which contrastive loss.

    Attributes:
        kind: `sigmoid` (SigLIP), `softmax` (CLIP), or `auto`: the one that the model was made for.
        force: train a model that has a logit bias with softmax, or one without with sigmoid, all the same.
    """

    kind: Literal["auto", "sigmoid", "softmax"] = "auto"
    force: bool = False


def loss_kind(config: LossConfig, model: ClipConfig) -> Literal["sigmoid", "softmax"]:
    """The loss that a config asks for on a model.

    Raises:
        ValueError: the model and the loss do not belong together, and `force` is not set.
    """
    belongs = "softmax" if model.logit_bias_init is None else "sigmoid"
    if config.kind == "auto":
        return belongs
    if config.kind != belongs and not config.force:
        has = "no logit bias, as CLIP has none" if belongs == "softmax" else "a logit bias, as SigLIP has"
        raise ValueError(
            f"this model has {has}, and is trained with the {belongs} loss; got {config.kind!r}. "
            f"Use {belongs!r}, or set loss.force to true"
        )
    return config.kind


def clip_objective(
    model: ClipConfig,
    kind: Literal["sigmoid", "softmax"],
    mesh: Mesh | None = None,
    augmentation: AugmentConfig | None = None,
    *,
    rules: Rules | None = None,
) -> ContrastiveObjective:
    """CLIP's or SigLIP's objective.

    Args:
        model: the two towers; its `preprocess` says how pictures are normalised.
        kind: the loss.
        mesh: when it has several devices the loss runs as a ring over those that divide the batch.
        augmentation: how training pictures vary; patches do not.
        rules: of the parameters; by them the activations between the blocks are held on the mesh too.

    Returns:
        An objective on batches with `image` uint8 `[b, h, w, 3]`, or patches and what `image_inputs` reads with them,
        `input_ids` int32 `[b, t]` and, for a model that masks padding, `attention_mask` int32 `[b, t]`. Its metrics are
        `logit_scale` (the multiplier) and, for sigmoid, `logit_bias`.
    """
    constrain = None if mesh is None or rules is None else constraint(rules, mesh)
    over = mesh if mesh is not None and mesh.size > 1 else None
    size = None if augmentation is None or augmentation.source_size is None else both_towers(model)[0].image_shape

    def encode(params: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        augment_key, image_key, text_key = jax.random.split(key, 3)
        if augmentation is not None and model.preprocess.resize_mode != "naflex":
            batch = {**batch, "image": augment(batch["image"], augment_key, augmentation, size=size)}
        pictures = image_inputs(model, batch)
        mask = batch["attention_mask"] if model.preprocess.mask_padding else None
        with constrain_activations(constrain) if constrain else contextlib.nullcontext():
            return {
                "image": encode_image(model, params, **pictures, key=image_key),
                "text": encode_text(model, params, batch["input_ids"], mask, key=text_key),
            }

    def loss(embeds: Any, params: Any) -> tuple[jax.Array, Metrics]:
        scale = jnp.exp(params["logit_scale"])
        metrics = {"logit_scale": scale}
        if kind == "softmax":
            args = (embeds["image"], embeds["text"], scale)
            value = sharded_softmax_loss(*args, mesh=over, axis_name=BATCH_AXES) if over else softmax_loss(*args)
            return value, metrics
        bias = params.get("logit_bias", jnp.zeros(()))
        args = (embeds["image"], embeds["text"], scale, bias)
        value = sharded_sigmoid_loss(*args, mesh=over, axis_name=BATCH_AXES) if over else sigmoid_loss(*args)
        return value, {**metrics, "logit_bias": bias}

    return ContrastiveObjective(encode=encode, loss=loss)
