"""From a config to everything a run needs, checked before anything is trained or written."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection

import jax

from clip_data import DataConfig, Pipeline, Tokenizer
from clip_models import ClipConfig
from clip_sharding import batch_readers, gather_items
from clip_train.agreement import sum_counts
from clip_train.config import ModelConfig, TrainConfig
from clip_train.config_file import ConfigError, located
from clip_train.evaluate import Encoders, check_evaluation
from clip_train.host import accelerators
from clip_train.inputs import data_config, image_tower, text_config
from clip_train.objective import LOGITS, first_logits, loss_kind, unchosen_logits
from clip_train.optimizers import Length, to_steps
from clip_train.program import LEARNING_RATE_FROM_SCRATCH, Program, make_program, place
from clip_train.teacher import check_teacher
from clip_train.weights import Origin, adapt, find_model, open_weights

_LEARNING_RATE_FROM_PRETRAINED = 1e-5


@dataclasses.dataclass(frozen=True)
class Setup(Program):
    """A run that is ready to start: what it compiles, and its data.

    Attributes:
        pipeline: the training data, at its start.
        tokenizer: the model's.
        warnings: what the user should know before the run.
    """

    pipeline: Pipeline
    tokenizer: Tokenizer
    warnings: tuple[str, ...]

    @property
    def data(self) -> DataConfig:
        """How samples are prepared for evaluation: in the model's size and length, whatever training is on."""
        expects = self.model.preprocess
        lengths = {"max_patches": expects.max_patches} if expects.resize_mode == "naflex" else {}
        return dataclasses.replace(self.pipeline.config, image_size=expects.size, embeddings={}, **lengths)

    def steps(self, length: Length) -> int:
        """A cadence in steps of this run, at least 1."""
        steps = to_steps(
            length,
            num_steps=self.num_steps,
            global_batch_size=self.config.global_batch_size,
            samples_per_epoch=self.pipeline.num_samples,
        )
        return max(steps, 1)


def resolve(config: TrainConfig, *, platform: str | None = None) -> tuple[TrainConfig, Origin]:
    """Fill in what depends on the model and the machine, without looking at the data.

    Args:
        config: as it was given.
        platform: of the devices that will run it; by default jax's.

    Returns:
        The resolved config, which resolves to itself, and the model's origin.

    Raises:
        ConfigError: naming the field.
    """
    with located("model"):
        origin = find_model(config.model)
        image_tower(origin.config)
    with located("data"):
        model = config.data.override(origin.config)
    precision = config.precision
    if precision == "auto":
        precision = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    given = {name: value for name in ("attention", "unroll") if (value := getattr(config, name)) is not None}
    with located(", ".join(given) or "precision, remat"):
        compute = dataclasses.replace(model.compute, dtype=precision, remat=config.remat, **given)
        model = dataclasses.replace(model, compute=compute)
    with located("loss"):
        kind = loss_kind(config.loss, model)
        model = first_logits(model, kind, config.global_batch_size, anew=_logits_anew(config.model, origin))
    with located("model"):
        origin = dataclasses.replace(origin, config=model)
        origin = adapt(origin, reinitialize=config.model.reinitialize, seed=config.seed)
    if config.loss.distillation is not None and config.loss.distillation.teacher is not None:
        with located("loss.distillation.teacher"):
            check_teacher(open_weights(config.loss.distillation.teacher)[0], model)
    rate = config.optimizer.learning_rate
    if rate is None:
        rate = LEARNING_RATE_FROM_SCRATCH if origin.load is None else _LEARNING_RATE_FROM_PRETRAINED
        rate *= config.optimizer.relative_rate
    resolved = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, config=model),
        data=dataclasses.replace(config.data, seed=config.seed if config.data.seed is None else config.data.seed),
        loss=dataclasses.replace(config.loss, kind=kind),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        microbatch_size=config.microbatch_size or config.global_batch_size,
        precision=precision,
    )
    return resolved, origin


def _logits_anew(config: ModelConfig, origin: Origin) -> Collection[str]:
    """The logit scale and bias that begin as loss and batch want them: from scratch, or where they are drawn anew."""
    if origin.load is not None:
        return [name for name in LOGITS if name in config.reinitialize]
    return LOGITS if config.config is None else unchosen_logits(config.config)


def prepare(config: TrainConfig, origin: Origin) -> Setup:
    """Build and check all that a run needs; the data is opened, no weight is made.

    Args:
        config: resolved.
        origin: of its model.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    model = origin.config
    where = place(config, model)
    with located("mesh"):
        process_index, process_count = batch_readers(where.mesh)
    if model.preprocess.resize_mode == "naflex" and config.data.augment.changes:
        raise ConfigError(
            "data.augment: sequences of patches (resize_mode naflex) are trained on as they come; leave data.augment "
            'out, or set data.resize_mode to "squash"'
        )
    source_size, lengths = config.data.augment.source_size, config.data.max_patches
    with located("data"):
        data = data_config(
            model,
            config.data.train,
            **({} if source_size is None else {"image_size": source_size}),
            **({"max_patches": lengths, "batch_by": "samples"} if isinstance(lengths, tuple) else {}),
            seed=config.seed if config.data.seed is None else config.data.seed,
            max_bad_fraction=config.data.max_bad_fraction,
            num_threads=config.data.num_threads,
            embeddings=_stored(config),
        )
    with located("data.tokenizer" if config.data.tokenizer else "model.config.preprocess.tokenizer"):
        tokenizer = _open_tokenizer(model, data)
    with located("data.train"):
        pipeline = Pipeline(
            data,
            global_batch_size=config.global_batch_size,
            process_index=process_index,
            process_count=process_count,
            sum_counts=functools.partial(sum_counts, gather=functools.partial(gather_items, mesh=where.mesh)),
        )
    program = make_program(config, origin, where, samples_per_epoch=pipeline.num_samples)
    setup = Setup(**vars(program), pipeline=pipeline, tokenizer=tokenizer, warnings=())
    for i, evaluation in enumerate(config.evaluation):
        with located(f"evaluation.{i}"):
            check_evaluation(evaluation, setup.data, Encoders(setup.model, setup.mesh))
    return dataclasses.replace(setup, warnings=tuple(_warnings(setup)))


def _stored(config: TrainConfig) -> dict[str, int]:
    columns = config.loss.distillation and config.loss.distillation.columns
    return {columns.image: columns.width, columns.text: columns.width} if columns else {}


def _open_tokenizer(model: ClipConfig, data: DataConfig) -> Tokenizer:
    tokenizer = Tokenizer.of(data)
    if tokenizer is None:
        raise ValueError("the model names no tokenizer; give a directory or a name on the Hugging Face Hub")
    vocab_size = text_config(model).vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer's ids go up to {tokenizer.vocab_size - 1}, but the model has a vocabulary of "
            f"{vocab_size}: use the tokenizer that belongs to the model, or set its vocab_size in model.config"
        )
    return tokenizer


def _warnings(setup: Setup) -> list[str]:
    config, found = setup.config, []
    if setup.warmup_steps > setup.num_steps / 5:
        found.append(
            f"warm-up takes {setup.warmup_steps} of {setup.num_steps} steps, more than a fifth of the run "
            "(schedule.warmup)"
        )
    by_steps, by_time = config.checkpoint.every_steps, config.checkpoint.every_minutes
    if by_time is None and (by_steps is None or by_steps >= setup.num_steps):
        found.append("no checkpoint will be written before the end (checkpoint.every_minutes, checkpoint.every_steps)")
    if jax.default_backend() == "cpu" and "JAX_PLATFORMS" not in os.environ and (devices := accelerators()):
        found.append(
            f"this machine has an accelerator ({devices[0]}) that jax does not see: "
            "install the extra for it, clip-train[cuda] or clip-train[tpu]"
        )
    return found
