"""From a config to everything a run needs, checked before anything is trained or written."""

from __future__ import annotations

import dataclasses
import functools
import glob
import math
import os
from typing import Literal

import jax
import optax
from jax.sharding import Mesh

from clip_data import DataConfig, Pipeline, Tokenizer
from clip_models import ClipConfig, init, logical_axes
from clip_sharding import BATCH_AXES, MeshConfig, PartitionConfig, Rules, make_mesh, shardings, strategy
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, located
from clip_train.evaluate import Encoders, EvaluationConfig, evaluation_data, labels_of, read_prompts
from clip_train.inputs import both_towers, data_config
from clip_train.objective import loss_kind
from clip_train.optimizers import Length, make_optimizer, make_schedule, to_samples, to_steps
from clip_train.state import TrainState, abstract_state
from clip_train.weights import Origin, find_model

_LEARNING_RATE_FROM_SCRATCH = 1e-3
_LEARNING_RATE_FROM_PRETRAINED = 1e-5
# Parameter, gradient and AdamW's two moments in float32, and the share of a device's memory they may take.
_BYTES_PER_PARAMETER = 16
_SHARE_FOR_STATE = 0.6


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that is ready to start.

    Attributes:
        config: the resolved config: nothing in it is left to a default that depends on the model or the machine.
        origin: the model and where its weights come from.
        loss: the contrastive loss.
        mesh: the devices.
        strategy: how parameters are divided, in a word.
        rules: how, in full.
        tx: the optimizer.
        learning_rate: the schedule.
        abstract: the state's shapes and shardings.
        pipeline: the training data, at its start.
        tokenizer: the model's.
        num_steps: updates in the run.
        warmup_steps: of the learning rate.
        num_microbatches: per update.
        warnings: what the user should know before the run.
    """

    config: TrainConfig
    origin: Origin
    loss: Literal["sigmoid", "softmax"]
    mesh: Mesh
    strategy: str
    rules: Rules
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    abstract: TrainState
    pipeline: Pipeline
    tokenizer: Tokenizer
    num_steps: int
    warmup_steps: int
    num_microbatches: int
    warnings: tuple[str, ...]

    @property
    def model(self) -> ClipConfig:
        """The model's config."""
        return self.origin.config

    @property
    def data(self) -> DataConfig:
        """How samples are prepared for evaluation: in the model's size, whatever training crops from."""
        return dataclasses.replace(self.pipeline.config, image_size=self.model.preprocess.size)

    def steps(self, length: Length) -> int:
        """A cadence in steps of this run, at least 1."""
        steps = to_steps(
            length,
            num_steps=self.num_steps,
            global_batch_size=self.config.global_batch_size,
            samples_per_epoch=self.pipeline.num_samples,
        )
        return max(steps, 1)


def resolve(config: TrainConfig) -> tuple[TrainConfig, Origin]:
    """Fill in what depends on the model and the machine, without looking at the data.

    Returns:
        The resolved config, which resolves to itself, and the model's origin.

    Raises:
        ConfigError: naming the field.
    """
    with located("model"):
        origin = find_model(config.model)
        both_towers(origin.config)
    with located("data"):
        model = config.data.override(origin.config)
        vision, pretrained = both_towers(model)[0], both_towers(origin.config)[0]
        if origin.load is not None and vision.image_size != pretrained.image_size:
            raise ValueError(
                f"image_size of pretrained weights is theirs, {pretrained.image_size}; got {vision.image_size}"
            )
    precision = config.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = dataclasses.replace(model, compute=dataclasses.replace(model.compute, dtype=precision, remat=config.remat))
    origin = dataclasses.replace(origin, config=model)
    with located("loss"):
        kind = loss_kind(config.loss, model)
    rate = config.optimizer.learning_rate
    if rate is None:
        rate = _LEARNING_RATE_FROM_SCRATCH if origin.load is None else _LEARNING_RATE_FROM_PRETRAINED
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


def prepare(config: TrainConfig, origin: Origin) -> Setup:
    """Build and check all that a run needs; the data is opened, no weight is made.

    Args:
        config: resolved.
        origin: of its model.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    model = origin.config
    mesh, strategy_name, rules = _place(config, model)
    num_microbatches = _check_batch(config, mesh)
    if model.preprocess.resize_mode == "naflex" and config.data.augment.changes:
        raise ConfigError(
            "data.augment: sequences of patches (resize_mode naflex) are trained on as they come; leave data.augment "
            'out, or set data.resize_mode to "squash"'
        )
    source_size = config.data.augment.source_size
    with located("data"):
        data = data_config(
            model,
            config.data.train,
            **({} if source_size is None else {"image_size": source_size}),
            seed=config.seed if config.data.seed is None else config.data.seed,
            max_bad_fraction=config.data.max_bad_fraction,
            num_threads=config.data.num_threads,
        )
    with located("data.tokenizer" if config.data.tokenizer else "model.config.preprocess.tokenizer"):
        tokenizer = _open_tokenizer(model, data)
    with located("data.train"):
        pipeline = Pipeline(
            data,
            global_batch_size=config.global_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    with located("train_samples"):
        samples = to_samples(config.train_samples, samples_per_epoch=pipeline.num_samples)
        num_steps = samples // config.global_batch_size
        if num_steps == 0:
            raise ValueError(
                f"{samples} samples make no batch of {config.global_batch_size}; train longer, "
                "or set a smaller global_batch_size"
            )
    with located("schedule"):
        length = {
            "num_steps": num_steps,
            "global_batch_size": config.global_batch_size,
            "samples_per_epoch": pipeline.num_samples,
        }
        warmup_steps = to_steps(config.schedule.warmup, **length)
        peak = config.optimizer.learning_rate or _LEARNING_RATE_FROM_SCRATCH
        rate = make_schedule(config.schedule, peak=peak, warmup_steps=warmup_steps, num_steps=num_steps)
    axes = logical_axes(model)
    make = functools.partial(init, model, jax.random.key(config.seed))
    tx = make_optimizer(config.optimizer, rate, axes=axes)
    with located("sharding"):
        placed = shardings(rules, mesh, axes, jax.eval_shape(make))
    setup = Setup(
        config=config,
        origin=origin,
        loss="sigmoid" if config.loss.kind == "sigmoid" else "softmax",
        mesh=mesh,
        strategy=strategy_name,
        rules=rules,
        tx=tx,
        learning_rate=rate,
        abstract=abstract_state(make, tx, placed, mesh),
        pipeline=pipeline,
        tokenizer=tokenizer,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        num_microbatches=num_microbatches,
        warnings=(),
    )
    for i, evaluation in enumerate(config.evaluation):
        with located(f"evaluation.{i}"):
            _check_evaluation(evaluation, setup)
    return dataclasses.replace(setup, warnings=tuple(_warnings(setup)))


def _open_tokenizer(model: ClipConfig, data: DataConfig) -> Tokenizer:
    tokenizer = Tokenizer.of(data)
    if tokenizer is None:
        raise ValueError("the model names no tokenizer; give a directory or a name on the Hugging Face Hub")
    vocab_size = both_towers(model)[1].vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer's ids go up to {tokenizer.vocab_size - 1}, but the text tower has a vocabulary of "
            f"{vocab_size}: use the tokenizer that belongs to the model, or set model.config.text.vocab_size"
        )
    return tokenizer


def _place(config: TrainConfig, model: ClipConfig) -> tuple[Mesh, str, Rules]:
    """The mesh, and the strategy in a word and in full."""
    given = config.sharding
    if given == "auto":
        given = "replicated" if config.mesh is None or config.mesh.fsdp == 1 else "fsdp"
        if config.mesh is None and not _fits_replicated(model):
            given = "fsdp"
    with located("mesh"):
        sizes = config.mesh or (MeshConfig(data=1, fsdp=-1) if given == "fsdp" else MeshConfig())
        mesh = make_mesh(sizes)
    with located("sharding"):
        rules = strategy(given)
        rules.check(mesh)
        _check_heads(rules, mesh, model)
    if isinstance(given, PartitionConfig):
        name = f"by {given.parameter_dims} and activations by {given.activation_dims} mesh axes"
    else:
        name = given if isinstance(given, str) else "by rules of the config"
    return mesh, name, rules


def _check_heads(rules: Rules, mesh: Mesh, model: ClipConfig) -> None:
    """Refuse to cut through a head: what divides `heads` in use divides their number, not only their width."""
    shards = mesh.shape["model"]
    if not any(logical == "heads" and "model" in axes for logical, axes in rules.rules):
        return
    for name, tower in zip(("vision", "text"), both_towers(model), strict=True):
        if tower.num_heads % shards:
            raise ValueError(
                f"the {tower.num_heads} heads of model.config.{name} do not divide over the mesh axis model of "
                f"{shards} devices; {math.gcd(tower.num_heads, shards)} would divide them"
            )


def _fits_replicated(model: ClipConfig) -> bool:
    device = jax.local_devices()[0]
    limit = None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
    if limit is None or jax.device_count() == 1:
        return True
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return _BYTES_PER_PARAMETER * sum(leaf.size for leaf in jax.tree.leaves(shapes)) < _SHARE_FOR_STATE * limit


def _check_batch(config: TrainConfig, mesh: Mesh) -> int:
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    micro = config.microbatch_size or config.global_batch_size
    field = "global_batch_size" if micro == config.global_batch_size else "microbatch_size"
    if micro % devices:
        below, above = micro // devices * devices, -(-micro // devices) * devices
        nearest = above if below == 0 or above - micro < micro - below else below
        raise ConfigError(
            f"{field}: must divide over {devices} devices; got {micro}. The nearest that does is {nearest}"
        )
    return config.global_batch_size // micro


def _check_evaluation(evaluation: EvaluationConfig, setup: Setup) -> None:
    """Read the prompts and one batch, so that what is missing is found now and not after the training."""
    with evaluation_data(evaluation, setup.data, Encoders(setup.model, setup.mesh)) as pipeline:
        if evaluation.task == "zeroshot_classification":
            labels_of(next(pipeline), len(read_prompts(evaluation).classnames))


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
    if jax.default_backend() == "cpu" and "JAX_PLATFORMS" not in os.environ and (devices := _accelerators()):
        found.append(
            f"this machine has an accelerator ({devices[0]}) that jax does not see: "
            "install the extra for it, clip-train[cuda] or clip-train[tpu]"
        )
    return found


def _accelerators() -> list[str]:
    return [
        path for pattern in ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*") for path in glob.glob(pattern)
    ]
