"""The modes that train by gradient: an attention head, the whole tower, low-rank updates, and WiSE-FT's way back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_data import Pipeline
from clip_finetune.classifier import Classifier
from clip_finetune.config import Mode, TuneConfig
from clip_finetune.judge import choice, judge, verdict_metrics
from clip_finetune.lora import lora_init, lora_merge
from clip_finetune.objective import SampleLoss, classification_loss
from clip_finetune.samples import Samples
from clip_models import logical_axes
from clip_sharding import BATCH_AXES, MeshConfig, make_mesh, to_global
from clip_train import TrainState, fit, make_optimizer, make_step
from clip_train.augment import augment
from clip_train.inputs import data_config, image_arrays
from clip_train.loop import Event
from clip_train.optimizers import AdamWConfig, ParametersConfig, make_schedule, to_steps

_LEARNING_RATES = {"attention": 1e-3, "lora": 1e-3, "full": 3e-5, "wise-ft": 3e-5}
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


def tune(
    classifier: Classifier,
    params: dict[str, Any],
    train: Samples,
    validation: Samples,
    config: TuneConfig,
    *,
    mode: Mode,
    loss: SampleLoss,
    num_train: int,
    eval_batch_size: int = 256,
    seed: int = 0,
    tell: Any = lambda epoch: None,
) -> tuple[dict[str, Any], list[Epoch]]:
    """Train, and keep the epoch that is best on the validation samples.

    What a mode leaves as it is has no gradient and no optimizer state.

    Args:
        classifier: which.
        params: to start from: `vision` and `head`.
        train: to learn from.
        validation: to choose the epoch by.
        config: of the training.
        mode: `attention`, `full`, `lora` or `wise-ft`.
        loss: of a sample.
        num_train: samples in `train`.
        eval_batch_size: pictures at once on the validation samples.
        seed: of the order, the augmentation and LoRA's first matrices.
        tell: called with each `Epoch`.

    Returns:
        The best parameters, LoRA's merged into the tower's, and all epochs.
    """
    mesh = make_mesh(MeshConfig())
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
    if mode == "lora":
        params = {**params, "lora": lora_init(params["vision"], jax.random.key(seed), rank=config.lora_rank)}
    optimizer, axes = _optimizer(config.optimizer, classifier, params, mode)
    tx = make_optimizer(optimizer, schedule, axes=axes)
    trained = {name: name != "vision" or mode in ("full", "wise-ft") for name in params}
    trainable = {name: jax.tree.map(lambda _, on=on: on, params[name]) for name, on in trained.items()}

    merged = functools.partial(_merged, alpha=config.lora_alpha)

    def apply(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        augment_key, drop_key = jax.random.split(key)
        arrays = {name: value for name, value in batch.items() if name != "target"}
        if config.augment.changes:
            size = classifier.config.preprocess.size
            shape = (size, size) if isinstance(size, int) else size
            arrays["image"] = augment(arrays["image"], augment_key, config.augment, size=shape)
        return classifier.logits(merged(params), arrays, drop_key)

    step = make_step(classification_loss(apply, loss), tx, seed=seed, trainable=trainable, learning_rate=schedule)
    replicated = NamedSharding(mesh, PartitionSpec())
    # The step consumes its state: the caller's arrays are copied first.
    params = jax.device_put(jax.tree.map(np.asarray, params), replicated)
    state = TrainState(step=jax.device_put(jnp.int32(0), replicated), params=params, opt_state=jax.jit(tx.init)(params))
    epochs: list[Epoch] = []
    best: dict[str, Any] = {}
    losses = _LastLoss()

    def measure(done: int, state: TrainState) -> None:
        tuned = jax.tree.map(np.asarray, merged(state.params))
        verdict = judge(classifier, tuned, validation, batch_size=eval_batch_size)
        epoch = Epoch(done // steps_per_epoch, losses.value, verdict_metrics(classifier, verdict))
        if not epochs or choice(epoch.metrics) > max(choice(other.metrics) for other in epochs):
            best.update(tuned)
        epochs.append(epoch)
        tell(epoch)

    source_size = config.augment.source_size
    options = {"shuffle": True, "num_epochs": None, "seed": seed}
    if source_size is not None:
        options["image_size"] = source_size
    data = data_config(classifier.config, tokenizer=None)
    with train.pipeline(data, batch_size=batch_size, **options) as pipeline:
        fit(
            state,
            step,
            _batches(pipeline, train, mesh),
            num_steps=num_steps,
            log=losses,
            events=[Event(measure, every_steps=steps_per_epoch)],
        )
    return best, epochs


class _LastLoss:
    """A log that remembers the last loss alone, and reads it when training waits anyway."""

    def __init__(self) -> None:
        self._loss: Any = float("nan")

    @property
    def value(self) -> float:
        return float(self._loss)

    def push(self, step: int, metrics: dict[str, jax.Array], *, started: float, data_seconds: float) -> None:
        self._loss = metrics["loss"]

    def settle(self) -> None:
        jax.block_until_ready(self._loss)


def _merged(params: Any, *, alpha: float) -> dict[str, Any]:
    vision = lora_merge(params["vision"], params["lora"], alpha=alpha) if "lora" in params else params["vision"]
    return {"vision": vision, "head": params["head"]}


def _optimizer(
    optimizer: AdamWConfig, classifier: Classifier, params: Any, mode: Mode
) -> tuple[AdamWConfig, dict[str, Any] | None]:
    """The optimizer with the mode's freezing or layer decay, and the axes' names that it needs for that."""
    if mode in ("attention", "lora"):
        frozen = ParametersConfig(match="vision", frozen=True)
        return dataclasses.replace(optimizer, layer_decay=None, parameters=(*optimizer.parameters, frozen)), None
    decay = _LAYER_DECAY if optimizer.layer_decay is None else optimizer.layer_decay
    head = {name: ("embed", "classes")[-value.ndim :] for name, value in params["head"].items()}
    axes = {"vision": logical_axes(classifier.config)["vision"], "head": head}
    return dataclasses.replace(optimizer, layer_decay=decay), axes


def _batches(pipeline: Pipeline, samples: Samples, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    for batch in pipeline:
        yield to_global({**image_arrays(batch), "target": samples.targets(batch)}, mesh)
