"""The seam between a model and the machine: what is minimised, as plain functions.

A `LossFn` is `(params, batch, key) -> (loss, metrics)`. A `ContrastiveObjective` is a `LossFn` in two halves, so that
exact accumulation can call them apart. `step` and `loop` know nothing else of the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_losses import caption_loss, sharded_sigmoid_loss, sharded_softmax_loss, sigmoid_loss, softmax_loss
from clip_models import (
    ClipConfig,
    caption_logits,
    constrain_activations,
    encode_text,
    image_features,
    project_image,
)
from clip_sharding import BATCH_AXES, Rules, constraint
from clip_train.accuracy import in_batch_accuracy
from clip_train.augment import AugmentConfig, augment
from clip_train.distill import distillation_loss
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
class TeacherColumns:
    """The fields of the training records that hold a teacher's embeddings: of unit norm or not, but not zero.

    Attributes:
        image: the field of the picture's embedding.
        text: the field of the embedding of the caption that is trained on.
        width: numbers in each.
    """

    image: str
    text: str
    width: int

    def __post_init__(self) -> None:
        """Refuse what names no two fields of numbers."""
        if not self.image or not self.text or self.image == self.text:
            raise ValueError(f"image and text name two fields; got {self.image!r} and {self.text!r}")
        if self.width < 1:
            raise ValueError(f"width is at least 1; got {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A teacher whose comparisons of pictures and texts are learnt besides: a model, or what it has left in the data.

    Attributes:
        teacher: its weights: a directory, a run's directory, or a name on the Hugging Face Hub. It takes the same
            pictures and tokens.
        columns: instead of weights, where the records hold its embeddings.
        weight: of this loss in the sum.
        scale: multiplies the teacher's cosine similarities; by default its own logit scale, which columns do not tell.
    """

    teacher: str | None = None
    columns: TeacherColumns | None = None
    weight: float = 1.0
    scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse no teacher, and two; embeddings without a scale; and what is not above 0."""
        if (self.teacher is None) == (self.columns is None):
            raise ValueError(
                "give teacher (weights) or columns (its embeddings in the data), and not both; got "
                f"{self.teacher!r} and {self.columns!r}"
            )
        if self.columns is not None and self.scale is None:
            raise ValueError("columns need the teacher's logit scale: set scale, which is 100 for OpenAI's CLIP")
        for name in ("weight", "scale"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is above 0; got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: a weighted sum.

    Attributes:
        kind: `sigmoid` (SigLIP), `softmax` (CLIP), `caption` (CapPa: the decoder alone), or `auto`: the one that the
            model was made for.
        force: train a model that has a logit bias with softmax, or one without with sigmoid, all the same; scale and
            bias then begin anew.
        contrastive_weight: of the sigmoid or softmax loss.
        caption_weight: of the captioning loss, beside a contrastive one; for a model with a decoder.
        distillation: a teacher, if any.
    """

    kind: Literal["auto", "sigmoid", "softmax", "caption"] = "auto"
    force: bool = False
    contrastive_weight: float = 1.0
    caption_weight: float = 0.0
    distillation: DistillationConfig | None = None

    def __post_init__(self) -> None:
        """Refuse weights below 0, and a sum of nothing."""
        if self.contrastive_weight <= 0 or self.caption_weight < 0:
            raise ValueError(
                "contrastive_weight is above 0 and caption_weight at least 0; got "
                f"{self.contrastive_weight} and {self.caption_weight}"
            )


Kind = Literal["sigmoid", "softmax", "caption"]


def loss_kind(config: LossConfig, model: ClipConfig) -> Kind:
    """The loss that a config asks for on a model.

    Raises:
        ValueError: the model and the loss do not belong together, and `force` is not set; or a part that a loss needs
            is not there, or would not be trained.
    """
    belongs: Kind = "softmax" if model.logit_bias_init is None else "sigmoid"
    if model.text is None and model.decoder is not None:
        belongs = "caption"
    kind = belongs if config.kind == "auto" else config.kind
    if kind == "caption":
        if model.decoder is None or model.vision is None:
            raise ValueError("the caption loss trains an image tower and a decoder; the model has not both")
        if model.text is not None:
            raise ValueError(
                "the caption loss alone would leave the text tower untrained: take a model without one, or a "
                "contrastive loss with caption_weight"
            )
        if config.caption_weight or config.distillation:
            raise ValueError("caption_weight and distillation go beside a contrastive loss, not beside kind 'caption'")
        return kind
    both_towers(model)
    if (model.decoder is None) != (config.caption_weight == 0):
        has, then = ("no decoder", "is 0") if model.decoder is None else ("a decoder", "is above 0, or it is untrained")
        raise ValueError(f"this model has {has}, so that caption_weight {then}; got {config.caption_weight}")
    if kind != belongs and not config.force:
        has = "no logit bias, as CLIP has none" if belongs == "softmax" else "a logit bias, as SigLIP has"
        raise ValueError(
            f"this model has {has}, and is trained with the {belongs} loss; got {config.kind!r}. "
            f"Use {belongs!r}, or set loss.force to true"
        )
    return kind


LOGITS = ("logit_scale", "logit_bias")
"""The parameters by which similarities become logits."""


def first_logits(model: ClipConfig, kind: Kind, global_batch_size: int, *, anew: Collection[str]) -> ClipConfig:
    """The model with the first logit scale and bias that suit a loss.

    Softmax begins as CLIP, at a scale of 1 / 0.07. Sigmoid begins as SigLIP, at a scale of 10; its bias makes a pair
    match with the probability 1 / n that it has in a batch of n, which is SigLIP's −10 at some 22,000 pairs.

    Args:
        model: whose values are kept, unless
        kind: is a loss that it was not made for, or
        global_batch_size: n
        anew: names them, of `LOGITS`.
    """
    if kind == "caption":
        return model
    if (model.logit_bias_init is None) != (kind == "softmax"):
        anew = LOGITS
    if kind == "softmax":
        first = {"logit_scale": math.log(1 / 0.07), "logit_bias": None}
    else:
        first = {"logit_scale": math.log(10), "logit_bias": -math.log(max(global_batch_size - 1, 1))}
    return dataclasses.replace(model, **{f"{name}_init": first[name] for name in LOGITS if name in anew})


def unchosen_logits(model: ClipConfig) -> tuple[str, ...]:
    """Which of `LOGITS` begin at a value that nobody chose: the default of a model that is written out."""
    defaults = {field.name: field.default for field in dataclasses.fields(ClipConfig)}
    return tuple(name for name in LOGITS if getattr(model, f"{name}_init") == defaults[f"{name}_init"])


def clip_objective(
    model: ClipConfig,
    loss_config: LossConfig,
    mesh: Mesh | None = None,
    augmentation: AugmentConfig | None = None,
    *,
    rules: Rules | None = None,
) -> ContrastiveObjective:
    """CLIP's, SigLIP's, CapPa's or CoCa's objective.

    Args:
        model: its `preprocess` says how pictures are normalised.
        loss_config: resolved: its `kind` is not `auto`.
        mesh: when it has several devices the contrastive loss runs as a ring over those that divide the batch.
        augmentation: how training pictures vary; patches do not.
        rules: of the parameters; by them the activations between the blocks are held on the mesh too.

    Returns:
        An objective on batches with `image` uint8 `[b, h, w, 3]`, or patches and what `image_inputs` reads with them;
        `input_ids` int32 `[b, t]`; `attention_mask` int32 `[b, t]`, for captions and for a model that masks padding;
        and, of a teacher, `teacher_image` and `teacher_text`, float `[b, e]`, whose products are its logits. Its
        metrics are `logit_scale` (the multiplier), for sigmoid `logit_bias`, each part of a sum, and the in-batch
        accuracies.
    """
    constrain = None if mesh is None or rules is None else constraint(rules, mesh)
    over = mesh if mesh is not None and mesh.size > 1 else None
    size = model.vision.image_shape if augmentation and augmentation.source_size and model.vision else None
    kind, distillation = loss_config.kind, loss_config.distillation

    def encode(params: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        augment_key, image_key, text_key = jax.random.split(key, 3)
        if augmentation is not None and model.preprocess.resize_mode != "naflex":
            batch = {**batch, "image": augment(batch["image"], augment_key, augmentation, size=size)}
        mask = batch["attention_mask"] if model.preprocess.mask_padding else None
        embeds: dict[str, jax.Array] = {}
        with _traced_for(mesh), constrain_activations(constrain) if constrain else contextlib.nullcontext():
            features = image_features(model, params, **image_inputs(model, batch), key=image_key)
            if kind != "caption":
                embeds["image"] = project_image(model, params, features.pooled)
                embeds["text"] = encode_text(model, params, batch["input_ids"], mask, key=text_key)
            if model.decoder is not None:
                decoder_key = jax.random.fold_in(text_key, 1)
                ids, kept = batch["input_ids"], batch["attention_mask"] > 0
                logits = caption_logits(model, params, None, ids, features=features, key=decoder_key)
                # Sums of each caption, not its mean: over the batch every token counts alike.
                embeds["caption_tokens"] = kept.sum(-1).astype(jnp.float32)
                embeds["caption_loss"] = jax.vmap(caption_loss)(logits, ids, kept) * embeds["caption_tokens"]
        return embeds | {name: batch[name] for name in ("teacher_image", "teacher_text") if distillation}

    def captioning(embeds: Any) -> jax.Array:
        return embeds["caption_loss"].sum() / jnp.maximum(embeds["caption_tokens"].sum(), 1)

    def loss(embeds: Any, params: Any) -> tuple[jax.Array, Metrics]:
        if kind == "caption":
            return captioning(embeds), {}
        scale = jnp.exp(params["logit_scale"])
        pairs = (embeds["image"], embeds["text"])
        metrics = {"logit_scale": scale, **in_batch_accuracy(*pairs, mesh=over)}
        if kind == "softmax":
            args = (*pairs, scale)
            value = sharded_softmax_loss(*args, mesh=over, axis_name=BATCH_AXES) if over else softmax_loss(*args)
        else:
            metrics["logit_bias"] = params["logit_bias"]
            args = (*pairs, scale, metrics["logit_bias"])
            value = sharded_sigmoid_loss(*args, mesh=over, axis_name=BATCH_AXES) if over else sigmoid_loss(*args)
        parts = {"contrastive_loss": (loss_config.contrastive_weight, value)}
        if loss_config.caption_weight:
            parts["caption_loss"] = (loss_config.caption_weight, captioning(embeds))
        if distillation is not None:
            taught = (embeds["teacher_image"], embeds["teacher_text"], 1.0)
            num_devices = 1 if over is None else over.size
            parts["distillation_loss"] = (
                distillation.weight,
                distillation_loss((*pairs, scale), taught, num_devices=num_devices),
            )
        if len(parts) > 1:
            metrics |= {name: value for name, (_, value) in parts.items()}
        return sum((weight * value for weight, value in parts.values()), jnp.zeros(())), metrics

    return ContrastiveObjective(encode=encode, loss=loss)


def _traced_for(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Tells the towers, while they are traced, what devices they will run on: they choose attention by it."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
