"""The modes that train by gradient: an attention head, the whole tower, and low-rank updates to it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_finetune.backbone import tower_of
from clip_finetune.config import Mode, TuneConfig
from clip_finetune.learner import Learner
from clip_finetune.lora import lora_axes, lora_init, lora_merge
from clip_finetune.samples import Reader, Samples
from clip_models import constrain_activations, logical_axes
from clip_sharding import BATCH_AXES, MeshConfig, constraint, make_mesh, shardings, strategy, to_global
from clip_train import Checkpoints, TrainState, fit, make_optimizer, make_step
from clip_train.batches import Cursors
from clip_train.config_file import located
from clip_train.jsonl import Jsonl, Row
from clip_train.log import MetricsLog
from clip_train.loop import Event
from clip_train.optimizers import (
    AdamWConfig,
    ParameterOptions,
    ParametersConfig,
    make_schedule,
    to_steps,
)
from clip_train.state import abstract_state, state_from_params
from clip_train.stop import Stop

_LEARNING_RATES = {"probe": 1e-3, "attention": 1e-3, "lora": 1e-3, "full": 3e-5, "wise-ft": 3e-5}
_LAYER_DECAY = 0.75


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        epoch: its number, from 1.
        loss: of its last update.
        metrics: on the validation samples.
    """

    epoch: int
    loss: float
    metrics: dict[str, float]


class StoppedError(Exception):
    """Somebody asked the training to stop; it is saved.

    Attributes:
        signal: by which.
        step: updates made.
    """

    def __init__(self, signal: Any, step: int) -> None:
        super().__init__(
            f"Stopped by {signal.name} after step {step}, and saved. The same command continues from there."
        )
        self.signal, self.step = signal, step


def tune(
    learner: Learner,
    params: dict[str, Any],
    train: Samples,
    config: TuneConfig,
    *,
    mode: Mode,
    num_train: int,
    directory: Path,
    seed: int = 0,
    tell: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[dict[str, Any], list[Epoch]]:
    """Train, and keep the epoch that is best on the validation samples; continue where an earlier call was cut off.

    What a mode leaves as it is has no gradient and no optimizer state.

    Args:
        learner: what is trained, and how it is judged.
        params: to start from: the tower's and `head`.
        train: to learn from.
        config: of the training.
        mode: `probe` and `attention` train the head alone; `full` and `wise-ft` the tower too; `lora` low-rank updates.
        num_train: samples in `train`.
        directory: for `metrics.jsonl`, and in `tuning/` checkpoints and the best epoch; this task's alone.
        seed: of the order, the augmentation and LoRA's first matrices.
        tell: called with each `Epoch`.

    Returns:
        The best parameters, LoRA's merged into the tower's, and all epochs.

    Raises:
        StoppedError: a signal asked for it; the same call continues.
    """
    tower = tower_of(learner.config)
    name = config.sharding
    if name == "auto":
        name = "fsdp" if config.mesh is not None and config.mesh.fsdp != 1 else "replicated"
    with located("tune.mesh"):
        mesh = make_mesh(config.mesh or MeshConfig())
    with located("tune.sharding"):
        rules = strategy(name)
        rules.check(mesh)
    num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    batch_size = -(-config.batch_size // num_shards) * num_shards
    steps_per_epoch = max(round(num_train / batch_size), 1)
    num_steps = config.epochs * steps_per_epoch
    schedule = make_schedule(
        config.schedule,
        peak=config.optimizer.learning_rate or _LEARNING_RATES[mode],
        warmup_steps=to_steps(
            config.schedule.warmup, num_steps=num_steps, global_batch_size=batch_size, samples_per_epoch=num_train
        ),
        num_steps=num_steps,
    )
    axes: dict[str, Any] = {tower: logical_axes(learner.config)[tower]}
    # No rule divides heads and low-rank updates: they are small.
    axes["head"] = {name: ("head_in", "classes")[-value.ndim :] for name, value in params["head"].items()}
    if mode == "lora":
        params = {**params, "lora": lora_init(params[tower], jax.random.key(seed), rank=config.lora_rank)}
        axes["lora"] = lora_axes(params["lora"])
    optimizer = _optimizer(config.optimizer, tower, mode)
    with located("tune.optimizer"):
        tx = make_optimizer(optimizer, schedule, axes=axes)
    shapes = jax.eval_shape(lambda: params)
    abstract = abstract_state(lambda: params, tx, shardings(rules, mesh, axes, shapes), mesh)
    merged = functools.partial(_merged, tower=tower, alpha=config.lora_alpha)
    constrain = constraint(rules, mesh)

    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        with constrain_activations(constrain):
            return learner.loss(merged(params), batch, key, mesh)

    step = make_step(
        loss,
        tx,
        seed=seed,
        trainable=ParameterOptions(optimizer, axes).trainable(shapes),
        learning_rate=schedule,
        abstract=abstract,
    )
    saved, best = directory / "tuning" / "checkpoints", directory / "tuning" / "best"
    with contextlib.ExitStack() as resources:
        reader = resources.enter_context(
            train.read(learner.config, batch_size=batch_size, seed=seed, image_size=config.augment.source_size)
        )
        checkpoints = resources.enter_context(Checkpoints(saved, keep=config.checkpoint.keep))
        epochs: list[Epoch] = []
        first_step = 0
        if checkpoints.latest_step() is None:
            # The step consumes its state: the caller's arrays are copied first.
            state = state_from_params(jax.tree.map(np.array, params), tx, abstract)
        else:
            with located("output_dir"):
                restored = checkpoints.restore(abstract)
            state, first_step = restored.state, restored.step
            with located("train"):
                reader.seek(restored.cursor["samples"])
            epochs += [Epoch(**epoch) for epoch in restored.cursor["epochs"]]
        cursors, last = Cursors(reader.cursor), _LastLoss()
        log = MetricsLog(
            [Jsonl(directory / "metrics.jsonl", first_step=first_step), last],
            global_batch_size=batch_size,
            first_step=first_step,
        )
        resources.callback(log.close)

        def measure(done: int, state: TrainState) -> None:
            tuned = jax.tree.map(np.asarray, merged(state.params))
            metrics = learner.measure(tuned)
            log.flush()
            epoch = Epoch(done // steps_per_epoch, last.value, metrics)
            log.add({f"validation/{name}": value for name, value in epoch.metrics.items()})
            if not epochs or learner.choice(metrics) > max(learner.choice(other.metrics) for other in epochs):
                learner.save(best, tuned)
            epochs.append(epoch)
            tell(epoch)

        def save(done: int, state: TrainState) -> None:
            log.flush()
            cursor = {"samples": cursors.at(done), "epochs": [dataclasses.asdict(epoch) for epoch in epochs]}
            checkpoints.save(done, state, cursor)

        minutes = config.checkpoint.every_minutes
        events = [
            Event(measure, every_steps=steps_per_epoch),
            Event(save, every_steps=config.checkpoint.every_steps, every_seconds=60 * minutes if minutes else None),
        ]
        with Stop() as stop:
            state, done = fit(
                state,
                step,
                _batches(reader, mesh, first_step, cursors),
                num_steps=num_steps,
                first_step=first_step,
                log=log,
                events=events,
                stop=stop,
            )
        if stop.signal is not None and done < num_steps:
            save(done, state)
            raise StoppedError(stop.signal, done)
    return learner.load(best), epochs


def forget_checkpoints(directory: Path) -> None:
    """Delete what `tune` kept to continue from: the task is done."""
    shutil.rmtree(directory / "tuning", ignore_errors=True)


class _LastLoss:
    """A sink that remembers the last loss alone."""

    value = float("nan")

    def write(self, row: Row) -> None:
        """Take a row."""
        self.value = row.get("loss", self.value)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing to let go of."""


def _merged(params: Any, *, tower: str, alpha: float) -> dict[str, Any]:
    weights = lora_merge(params[tower], params["lora"], alpha=alpha) if "lora" in params else params[tower]
    return {tower: weights, "head": params["head"]}


def _optimizer(optimizer: AdamWConfig, tower: str, mode: Mode) -> AdamWConfig:
    """The optimizer with the mode's freezing or layer decay."""
    if mode in ("probe", "attention", "lora"):
        frozen = ParametersConfig(match=tower, frozen=True)
        return dataclasses.replace(optimizer, layer_decay=None, parameters=(*optimizer.parameters, frozen))
    return dataclasses.replace(
        optimizer, layer_decay=_LAYER_DECAY if optimizer.layer_decay is None else optimizer.layer_decay
    )


def _batches(reader: Reader, mesh: Mesh, first_step: int, cursors: Cursors) -> Iterator[dict[str, jax.Array]]:
    for step, rows in enumerate(reader, start=first_step + 1):
        cursors.note(step)
        yield to_global({**rows.arrays, "target": rows.targets}, mesh)
