"""From a task to the parameters of its classifier: one way for each mode."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_finetune.config import FinetuneConfig
from clip_finetune.features import cache_directory, labelled_features
from clip_finetune.learner import Classifying
from clip_finetune.linear_probe import fit_head
from clip_finetune.objective import sample_loss
from clip_finetune.task import FAULTS, Task
from clip_finetune.tune import Epoch, tune
from clip_finetune.wise_ft import Curve, best_between
from clip_finetune.zero_shot import find_prompts, zero_shot_head
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.output import Output


@dataclasses.dataclass(frozen=True)
class Found:
    """What a mode came to.

    Attributes:
        params: of the classifier.
        settings: what it chose, such as a weight decay.
        curve: for `wise-ft`, the metric that was chosen by at each alpha, on the validation samples.
        epochs: of training by gradient.
        faults: how many samples to learn from or to choose by could not be used, by reason.
        unusable: some of those, in words.
    """

    params: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    curve: Curve = ()
    epochs: tuple[Epoch, ...] = ()
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    unusable: tuple[str, ...] = ()


def learn(task: Task, output: Output, tell: Callable[[Epoch], None]) -> Found:
    """The parameters of a task's classifier, learned as its mode says.

    Args:
        task: what there is to learn.
        output: of the task; a tuning keeps there what it continues from.
        tell: called with each `Epoch` of a tuning.

    Raises:
        ConfigError: the samples, templates or class weights cannot be learned from.
        StoppedError: a signal asked for it; the same call continues.
    """
    config, classifier, parts = task.config, task.classifier, task.parts
    tower = {task.tower: task.params[task.tower]}
    num_classes = len(classifier.classnames)
    settings: dict[str, Any] = {}
    if config.head_from == "zero-shot":
        with located("templates"):
            plain = "a photo of a {c}." if task.tower == "vision" else "{c}"
            prompts = find_prompts(classifier.classnames, config.templates, config.train, plain=plain)
        with located("mode" if config.mode == "zero-shot" else "tune.head"):
            head = zero_shot_head(task.model, task.params, prompts, multi_label=classifier.multi_label)
        if config.mode == "zero-shot":
            return Found({**tower, "head": head})
    options: dict[str, Any] = {
        "kind": classifier.features or "mean",
        "batch_size": config.batch_size,
        "cache": cache_directory(config.cache),
    }
    with located("train", FAULTS):
        learnt = labelled_features(classifier.config, tower, parts["train"], **options)
    features, targets, faults, unusable = learnt
    loss = sample_loss(
        num_classes,
        class_weights=_class_weights(config, targets, num_classes),
        label_smoothing=config.label_smoothing,
    )
    if config.head_from == "probe":
        with located("validation" if config.validation else "train", FAULTS):
            chosen = labelled_features(classifier.config, tower, parts["validation"], **options)
        faults, unusable, held_out = add_faults(faults, chosen.faults), (*unusable, *chosen.unusable), chosen[:2]
        head, decay = fit_head(
            features, targets, held_out, config.probe, num_classes=num_classes, loss=loss, seed=config.seed
        )
        settings = {"weight_decay": decay}
        if config.mode == "probe":
            settings |= {"epochs": config.probe.epochs} if config.probe.solver == "adamw" else {}
            return Found({**tower, "head": head}, settings, faults=faults, unusable=unusable)
    elif config.head_from == "random":
        head = classifier.head.init(jax.random.key(config.seed))
    start = {**tower, "head": head}
    learner = Classifying(classifier, loss, parts["validation"], config.batch_size, config.tune.augment)
    output.write_config(config_to_json(config))
    with located("train", FAULTS):
        tuned, epochs = tune(
            learner,
            start,
            parts["train"],
            config.tune,
            mode=config.mode,
            num_train=len(targets),
            directory=output.root,
            seed=config.seed,
            tell=tell,
        )
    if config.mode != "wise-ft":
        return Found(tuned, settings, (), tuple(epochs), faults, unusable)

    between, alpha, curve = best_between(
        start, tuned, config.tune.alphas, lambda params: learner.choice(learner.measure(params))
    )
    return Found(between, {"alpha": alpha}, curve, tuple(epochs), faults, unusable)


def add_faults(some: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """How many samples could not be used for each reason, of two readings."""
    return dict(Counter(some) + Counter(more))


def _class_weights(config: FinetuneConfig, targets: np.ndarray, num_classes: int) -> tuple[float, ...] | None:
    given = config.class_weights
    if given is None or not isinstance(given, str):
        if given is not None and len(given) != num_classes:
            raise ConfigError(f"class_weights: one for each of {num_classes} classes, or balanced; got {len(given)}")
        return given
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=num_classes)
    weights = counts.sum() / (num_classes * np.maximum(counts, 1))
    return tuple(float(weight) for weight in weights)
