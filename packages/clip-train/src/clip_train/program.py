"""What a run compiles: mesh, rules, optimizer, the state's shapes and the step, from the config alone.

A run trains it on the devices there are, a plan compiles it for others; neither has another way to make a step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_models import ClipConfig, init, logical_axes
from clip_sharding import (
    BATCH_AXES,
    MeshConfig,
    PartitionConfig,
    Rules,
    batch_sharding,
    count_flops,
    count_slices,
    dividing_size,
    make_mesh,
    shardings,
    strategy,
)
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, located
from clip_train.guard import guard
from clip_train.inputs import image_tower
from clip_train.objective import ContrastiveObjective, clip_objective
from clip_train.optimizers import ParameterOptions, make_optimizer, make_schedule, to_samples, to_steps
from clip_train.state import TrainState, abstract_state, averaged_of
from clip_train.step import Step, make_step
from clip_train.teacher import StoredTeacher, TaughtBatches, Teacher, teaching
from clip_train.weights import Load, Origin, open_weights

LEARNING_RATE_FROM_SCRATCH = 1e-3
# Parameter, gradient and AdamW's two moments in float32, and the share of a device's memory they may take.
_BYTES_PER_PARAMETER = 16
_SHARE_FOR_STATE = 0.6


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is laid out.

    Attributes:
        mesh: the devices.
        strategy: how parameters are divided, in a word.
        rules: how, in full.
        num_microbatches: per update.
    """

    mesh: Mesh
    strategy: str
    rules: Rules
    num_microbatches: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run compiles.

    Attributes:
        config: the resolved config: nothing in it is left to a default that depends on the model or the machine.
        origin: the model and where its weights come from.
        mesh: the devices.
        strategy: how parameters are divided, in a word.
        rules: how, in full.
        num_microbatches: per update.
        tx: the optimizer.
        learning_rate: the schedule.
        abstract: the state's shapes and shardings.
        trainable: which parameters are, as a tree of bools; `None` if all are.
        num_steps: updates in the run.
        warmup_steps: of the learning rate.
    """

    config: TrainConfig
    origin: Origin
    mesh: Mesh
    strategy: str
    rules: Rules
    num_microbatches: int
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    abstract: TrainState
    trainable: Any
    num_steps: int
    warmup_steps: int

    @property
    def model(self) -> ClipConfig:
        """The model's config."""
        return self.origin.config

    def objective(self) -> ContrastiveObjective:
        """What is minimised."""
        return clip_objective(self.model, self.config.loss, self.mesh, self.config.data.augment, rules=self.rules)

    def teacher(self) -> TaughtBatches | None:
        """Whom to learn from: a model, its weights on the mesh, or its embeddings in the data; None for nobody."""
        distillation = self.config.loss.distillation
        if distillation is None:
            return None
        if distillation.columns is not None and distillation.scale is not None:
            return StoredTeacher(distillation.columns, distillation.scale, self.mesh)
        config, load = self._open_teacher(str(distillation.teacher))
        return Teacher(
            config,
            load(NamedSharding(self.mesh, PartitionSpec())),
            self.model,
            self.mesh,
            scale=distillation.scale,
            num_microbatches=self.num_microbatches,
        )

    def teacher_program(self) -> tuple[Any, Any] | None:
        """The program of a teacher that is a model, and its parameters' shapes and shardings; None without one."""
        distillation = self.config.loss.distillation
        if distillation is None or distillation.teacher is None:
            return None
        config, _ = self._open_teacher(distillation.teacher)
        whole = NamedSharding(self.mesh, PartitionSpec())
        shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
        return teaching(config, self.mesh, scale=1.0, num_microbatches=self.num_microbatches), params

    def _open_teacher(self, name: str) -> tuple[ClipConfig, Load]:
        config, load = open_weights(name)
        return dataclasses.replace(config, compute=dataclasses.replace(self.model.compute, remat="none")), load

    def step(self) -> Step:
        """The update."""
        return make_step(
            self.objective(),
            self.tx,
            seed=self.config.seed,
            num_microbatches=self.num_microbatches,
            learning_rate=self.learning_rate,
            abstract=self.abstract,
            trainable=self.trainable,
            ema_decay=self.config.ema.decay if self.config.ema else None,
        )

    def model_flops(self) -> float:
        """Of an update on all devices, in the matrix products of model and loss, forward and backward, none twice.

        With batches of several lengths it is the mean of them.
        """
        # A kernel's own arithmetic is not the model's: some is hidden, and some done twice.
        compute = dataclasses.replace(self.model.compute, remat="none", attention="xla")
        plain = dataclasses.replace(self.model, compute=compute)
        alone = dataclasses.replace(
            self,
            origin=dataclasses.replace(self.origin, config=plain),
            mesh=make_mesh(MeshConfig(), jax.local_devices()[:1]),
        )
        params, batches = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            (self.abstract.params, [self.batch(length) for length in self.lengths]),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        gradient = jax.value_and_grad(alone.objective(), has_aux=True)
        return sum(count_flops(gradient, params, batch, key) for batch in batches) / len(batches)

    @property
    def averaged(self) -> Any:
        """Which parameters are evaluated as their moving averages, as a tree of bools; `None` if none is."""
        return averaged_of(self.abstract) if self.config.ema and self.config.ema.evaluate else None

    def evaluated(self, state: TrainState) -> Any:
        """The parameters that are evaluated: those of a state, or their moving averages."""
        return state.params if self.averaged is None else state.averaged()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those of the sequences of patches that batches may have; 0 of pictures."""
        lengths = self.config.data.max_patches
        if isinstance(lengths, tuple):
            return lengths
        preprocess = self.model.preprocess
        return (preprocess.max_patches if preprocess.resize_mode == "naflex" else 0,)

    def batch(self, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes, dtypes and shardings of a global batch, as the run hands it to the step.

        Args:
            length: of its sequences of patches; by default the longest that the run has.
        """
        model, rows = self.model, self.config.global_batch_size
        vision = image_tower(model)
        tokens = rows, model.preprocess.text_length
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "input_ids": (tokens, jnp.int32),
            "attention_mask": (tokens, jnp.int32),
        }
        if model.preprocess.resize_mode == "naflex":
            patches = rows, max(self.lengths) if length is None else length
            shapes["image"] = ((*patches, vision.patch_size**2 * 3), jnp.uint8)
            shapes["pixel_attention_mask"] = (patches, jnp.int32)
            shapes["spatial_shapes"] = ((rows, 2), jnp.int32)
        else:
            source = self.config.data.augment.source_size
            size = vision.image_shape if source is None else (source, source)
            shapes["image"] = ((rows, *size, 3), jnp.uint8)
        if self.config.loss.distillation is not None:
            taught = self.config.loss.distillation
            width = taught.columns.width if taught.columns else open_weights(str(taught.teacher))[0].embed_dim
            shapes |= dict.fromkeys(("teacher_image", "teacher_text"), ((rows, width), jnp.float32))
        where = batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in sorted(shapes.items())
        }


def place(
    config: TrainConfig, model: ClipConfig, devices: Sequence[Any] | None = None, *, memory: int | None = None
) -> Place:
    """Lay a run out over devices.

    Args:
        config: resolved.
        model: what it trains.
        devices: by default those of every process.
        memory: bytes of one of those devices; by default it is asked.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    given = config.sharding
    if given == "auto":
        given = _suiting(config.mesh) if config.mesh else "replicated" if _fits_replicated(model, memory) else "fsdp"
    with located("sharding"):
        rules = strategy(given)
    with located("mesh"):
        devices = jax.devices() if devices is None else devices
        mesh = make_mesh(config.mesh or _mesh_for(given, model, devices), devices)
    with located("sharding"):
        rules.check(mesh, None if isinstance(given, str | PartitionConfig) else _axis_names(model))
        _check_heads(rules, mesh, model)
    if isinstance(given, PartitionConfig):
        name = f"by {given.parameter_dims} and activations by {given.activation_dims} mesh axes"
    else:
        name = given if isinstance(given, str) else "by rules of the config"
    return Place(mesh, name, rules, _check_batch(config, mesh))


def make_program(config: TrainConfig, origin: Origin, where: Place, *, samples_per_epoch: int | None) -> Program:
    """Make what a run compiles; no weight is made and no data is looked at.

    Args:
        config: resolved.
        origin: of its model.
        where: from `place`.
        samples_per_epoch: samples in all training sources; None: unknown, and lengths in epochs are refused.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    model = origin.config
    with located("train_samples"):
        samples = to_samples(config.train_samples, samples_per_epoch=samples_per_epoch)
        num_steps = samples // config.global_batch_size
        if num_steps == 0:
            raise ValueError(
                f"{samples} samples make no batch of {config.global_batch_size}; train longer, "
                "or set a smaller global_batch_size"
            )
    with located("schedule"):
        steps = functools.partial(
            to_steps,
            num_steps=num_steps,
            global_batch_size=config.global_batch_size,
            samples_per_epoch=samples_per_epoch,
        )
        schedule = config.schedule
        warmup_steps = steps(schedule.warmup)
        rate = make_schedule(
            schedule,
            peak=config.optimizer.learning_rate or LEARNING_RATE_FROM_SCRATCH,
            warmup_steps=warmup_steps,
            num_steps=num_steps,
            offset_steps=steps(schedule.offset),
            timescale_steps=None if schedule.timescale is None else steps(schedule.timescale),
            staircase_steps=1 if schedule.staircase is None else steps(schedule.staircase),
            cooldown_steps=steps(schedule.cooldown),
        )
    axes = logical_axes(model)
    make = functools.partial(init, model, jax.random.key(config.seed))
    with located("optimizer"):
        options = ParameterOptions(config.optimizer, axes)
        trainable = options.trainable(jax.eval_shape(make))
        tx = guard(make_optimizer(config.optimizer, rate, axes=axes, mesh=where.mesh), config.guard)
    with located("sharding"):
        placed = shardings(where.rules, where.mesh, axes, jax.eval_shape(make))
    return Program(
        config=config,
        origin=origin,
        mesh=where.mesh,
        strategy=where.strategy,
        rules=where.rules,
        num_microbatches=where.num_microbatches,
        tx=tx,
        learning_rate=rate,
        abstract=abstract_state(
            make,
            tx,
            placed,
            where.mesh,
            averaged=None if config.ema is None else trainable,
            block_axes=getattr(config.optimizer, "shard_over", ()),
        ),
        trainable=None if all(jax.tree.leaves(trainable)) else trainable,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
    )


def _suiting(mesh: MeshConfig) -> str:
    """The strategy that uses the axes that a mesh has."""
    used = [name for name, axis in (("fsdp", mesh.fsdp), ("tensor", mesh.model)) if axis != 1]
    return "+".join(used) or "replicated"


def _mesh_for(given: Any, model: ClipConfig, devices: Sequence[Any]) -> MeshConfig:
    """The mesh of a config that gives none: `fsdp` over as many devices of a slice as divide every parameter."""
    if given != "fsdp":
        return MeshConfig()
    num_devices = len(devices) // count_slices(devices)
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return MeshConfig(data=-1, fsdp=dividing_size(strategy(given), "fsdp", num_devices, logical_axes(model), shapes))


def _axis_names(model: ClipConfig) -> set[str]:
    """The logical axes that rules may name: of parameters and activations; the batch is divided without rules."""
    names = jax.tree.leaves(logical_axes(model), is_leaf=lambda node: isinstance(node, tuple))
    return {name for axes in names for name in axes} | {"length"}


def _check_heads(rules: Rules, mesh: Mesh, model: ClipConfig) -> None:
    """Refuse to cut through a head: what divides `heads` in use divides their number, not only their width."""
    shards = mesh.shape["model"]
    if not any(logical == "heads" and "model" in axes for logical, axes in rules.rules):
        return
    for name in ("vision", "text", "decoder"):
        tower: Any = getattr(model, name)
        if tower is not None and tower.num_heads % shards:
            raise ValueError(
                f"the {tower.num_heads} heads of model.config.{name} do not divide over the mesh axis model of "
                f"{shards} devices; {math.gcd(tower.num_heads, shards)} would divide them"
            )


def _fits_replicated(model: ClipConfig, memory: int | None) -> bool:
    if memory is None:
        device = jax.local_devices()[0]
        memory = None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
        if memory is None or jax.device_count() == 1:
            return True
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return _BYTES_PER_PARAMETER * sum(leaf.size for leaf in jax.tree.leaves(shapes)) < _SHARE_FOR_STATE * memory


def _check_batch(config: TrainConfig, mesh: Mesh) -> int:
    """The number of microbatches."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    whole = config.global_batch_size
    micro = config.microbatch_size or whole
    if whole % devices:
        nearest = max(math.ceil(whole / devices - 0.5), 1) * devices
        raise ConfigError(
            f"global_batch_size: must divide over {devices} devices; got {whole}. The nearest that does is {nearest}"
        )
    if micro % devices:
        fitting = [size for size in range(devices, whole + 1, devices) if whole % size == 0]
        nearest = min(fitting, key=lambda size: abs(size - micro))
        raise ConfigError(
            f"microbatch_size: must divide over {devices} devices, and divide global_batch_size; got {micro}. The "
            f"nearest that does is {nearest}"
        )
    return whole // micro
