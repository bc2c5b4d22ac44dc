"""`clip-finetune classify` and `text`: a classifier on one of a checkpoint's towers, from config to results."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_data import DataError
from clip_finetune.backbone import Tower, load_backbone, tower_alone
from clip_finetune.classifier import Classifier
from clip_finetune.config import FinetuneConfig
from clip_finetune.features import cache_directory, labelled_features
from clip_finetune.judge import Verdict, choice, judge, verdict_metrics
from clip_finetune.objective import SampleLoss, sample_loss
from clip_finetune.page import write_page
from clip_finetune.samples import Labelled, Part, Samples, Split, check_classes
from clip_finetune.texts import Texts, names_of, read_texts
from clip_finetune.tune import Epoch, StoppedError, forget_checkpoints, tune
from clip_finetune.wise_ft import Curve, best_between
from clip_finetune.zero_shot import find_prompts, zero_shot_head
from clip_models import ClipConfig
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.evaluate import is_multi_label, read_classnames
from clip_train.metrics import confusion_matrix
from clip_train.output import Output, write_json
from clip_train.probe import ProbeConfig, fit_probe, sweep_weight_decay
from clip_train.screen import make_console, percent, show_facts

_NUM_MISTAKES = 24
_TASKS = {"probe": "linear_probe", "zero-shot": "zeroshot_classification"}
_FAULTS = (ValueError, OSError, DataError)


class Task(NamedTuple):
    """What there is to learn.

    Attributes:
        config: of the task.
        tower: that learns it.
        model: the checkpoint's config.
        params: its parameters.
        classifier: of the tower alone.
        parts: the samples.
    """

    config: FinetuneConfig
    tower: Tower
    model: ClipConfig
    params: Any
    classifier: Classifier
    parts: dict[Part, Labelled]


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


def classify(config: FinetuneConfig, *, tower: Tower = "vision") -> int:
    """Learn the classes as the config's mode says, report on the test samples, and save the classifier.

    Started again it continues where an earlier start was cut off.

    Args:
        config: of the task.
        tower: that classifies: pictures or texts.

    Returns:
        The exit status: 0 when it is finished, 128 plus the signal's number when one stopped it.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    output, resolved = Output(Path(config.output_dir)), config_to_json(config)
    if output.claim(resolved) and output.results.exists():
        console.print(f"This task is finished: {output.results}. To do it again, set another output_dir.")
        return 0
    task = prepare(config, tower)
    classnames = task.classifier.classnames
    facts = [
        ("model", config.model),
        ("mode", config.mode),
        ("classes", ", ".join(classnames[:12]) + (" …" if len(classnames) > 12 else "")),
        ("output", str(output.root)),
    ]
    show_facts(console, f"clip-finetune {'classify' if tower == 'vision' else 'text'}", facts)

    def tell(epoch: Epoch) -> None:
        shown = "  ".join(f"{name} {percent(value)}" for name, value in epoch.metrics.items())
        console.print(f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  validation {shown}")

    try:
        found = _learn(task, output, tell)
    except StoppedError as stopped:
        console.print(
            f"\nStopped by {stopped.signal.name} after step {stopped.step}, and saved. The same command continues from "
            "there."
        )
        return 128 + stopped.signal
    with located("test" if config.test else "train", _FAULTS):
        verdict = judge(
            task.classifier, found.params, task.parts["test"], batch_size=config.batch_size, num_mistakes=_NUM_MISTAKES
        )
    output.write_config(resolved)
    opened_by = task.classifier.save(output.root / "classifier", found.params)
    results = {**_results(task, found, verdict), "transformers": opened_by}
    write_page(output.report, resolved, task.classifier, results, verdict)
    write_json(output.results, results)
    forget_checkpoints(output.root)
    prefix = "lp_" if config.mode == "probe" else ""
    lines = [(prefix + name, percent(value)) for name, value in verdict_metrics(task.classifier, verdict).items()]
    lines += [(name.replace("_", " "), f"{value:g}") for name, value in found.settings.items()]
    show_facts(console, "Finished", [*lines, ("report", str(output.report))])
    if skipped := results["skipped_samples"]:
        console.print(f"Not usable: {', '.join(f'{n} {reason}' for reason, n in skipped.items())}")
    return 0


def prepare(config: FinetuneConfig, tower: Tower) -> Task:
    """Open the checkpoint and find the samples and their classes.

    Args:
        config: of the task.
        tower: that learns it.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    with located("model"):
        model, params = load_backbone(config.model, tower=tower)
    alone = tower_alone(model, tower)
    if config.tune.augment.changes and alone.preprocess.resize_mode == "naflex":
        raise ConfigError(
            "tune.augment: sequences of patches (resize_mode naflex) are trained on as they come; leave it out"
        )
    multi_label = is_multi_label(config.multi_label, config.train)
    parts = _texts(config, multi_label) if tower == "text" else _pictures(config, multi_label)
    classifier = Classifier(
        alone, parts["train"].classnames, None if config.mode == "attention" else config.feature_kind, multi_label
    )
    return Task(config, tower, model, params, classifier, parts)


def fit_head(
    features: np.ndarray,
    targets: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray],
    config: ProbeConfig,
    *,
    num_classes: int,
    loss: SampleLoss,
    seed: int,
) -> tuple[dict[str, np.ndarray], float]:
    """A linear head on features as they come: its weight decay chosen on held-out samples, then fitted to all.

    It is trained on features of mean 0 and about unit norm, and that is folded into it.

    Args:
        features: float32 `[n, f]`.
        targets: int `[n]`, or multi-hot `[n, c]`.
        held_out: features and targets to choose by.
        config: of the training.
        num_classes: c.
        loss: of a sample.
        seed: of the training.

    Returns:
        `kernel` `[f, c]` and `bias` `[c]`, and the weight decay.
    """
    mean, scale = features.mean(axis=0), (features.std(axis=0) + 1e-6) * np.sqrt(features.shape[1])
    scaled = (features - mean) / scale
    apart = ((held_out[0] - mean) / scale, held_out[1])
    options: dict[str, Any] = {"num_classes": num_classes, "loss": loss, "seed": seed}
    decay = config.weight_decay
    if decay is None:
        decay = sweep_weight_decay(scaled, targets, apart, config, **options)
    scaled, targets = np.concatenate([scaled, apart[0]]), np.concatenate([targets, apart[1]])
    probe = fit_probe(scaled, targets, config, weight_decay=decay, **options)
    kernel = probe["kernel"] / scale[:, None]
    return {"kernel": kernel, "bias": probe["bias"] - mean @ kernel}, decay


def _split(config: FinetuneConfig, part: Part) -> Split | None:
    given = {"train": None, "validation": config.validation, "test": config.test}[part]
    if given is not None:
        return None
    return Split(
        part=part,
        validation=0.0 if config.validation else config.split.validation,
        test=0.0 if config.test else config.split.test,
        seed=config.seed,
    )


def _sources(config: FinetuneConfig) -> dict[Part, Any]:
    return {
        "train": config.train,
        "validation": config.validation or config.train,
        "test": config.test or config.train,
    }


def _pictures(config: FinetuneConfig, multi_label: bool) -> dict[Part, Labelled]:
    given = [source for source in (config.validation, config.test) if source is not None]
    with located("classnames"):
        classnames = read_classnames(config.classnames, config.train)
        check_classes(config.train, classnames, given)
    return {
        part: Samples(source, classnames, multi_label, _split(config, part))
        for part, source in _sources(config).items()
    }


def _texts(config: FinetuneConfig, multi_label: bool) -> dict[Part, Labelled]:
    read = {}
    for part, source in _sources(config).items():
        with located(part if getattr(config, part) else "train", _FAULTS):
            read[part] = read["train"] if source is config.train and read else read_texts(source)
    with located("classnames"):
        named = names_of(read["train"])
        classnames = named if named and config.classnames is None else read_classnames(config.classnames, config.train)
        check_classes(config.train, classnames)
    parts: dict[Part, Labelled] = {}
    for part, source in _sources(config).items():
        texts = Texts.of(
            read[part],
            classnames,
            where=", ".join(source.patterns),
            multi_label=multi_label,
            split=_split(config, part),
        )
        with located(part if getattr(config, part) else "train"):
            texts.targets()
        parts[part] = texts
    return parts


def _learn(task: Task, output: Output, tell: Callable[[Epoch], None]) -> Found:
    """The classifier of a mode."""
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
    with located("train", _FAULTS):
        learnt = labelled_features(classifier.config, tower, parts["train"], **options)
    features, targets, faults, unusable = learnt
    loss = sample_loss(
        num_classes,
        class_weights=_class_weights(config, targets, num_classes),
        label_smoothing=config.label_smoothing,
    )
    if config.head_from == "probe":
        with located("validation" if config.validation else "train", _FAULTS):
            chosen = labelled_features(classifier.config, tower, parts["validation"], **options)
        faults, unusable, held_out = _both(faults, chosen.faults), (*unusable, *chosen.unusable), chosen[:2]
        head, decay = fit_head(
            features, targets, held_out, config.probe, num_classes=num_classes, loss=loss, seed=config.seed
        )
        settings = {"weight_decay": decay}
        if config.mode == "probe":
            settings |= {"epochs": config.probe.epochs}
            return Found({**tower, "head": head}, settings, faults=faults, unusable=unusable)
    elif config.head_from == "random":
        head = classifier.head.init(jax.random.key(config.seed))
    start = {**tower, "head": head}
    output.write_config(config_to_json(config))
    with located("train", _FAULTS):
        tuned, epochs = tune(
            classifier,
            start,
            parts["train"],
            parts["validation"],
            config.tune,
            mode=config.mode,
            loss=loss,
            num_train=len(targets),
            directory=output.root,
            eval_batch_size=config.batch_size,
            seed=config.seed,
            tell=tell,
        )
    if config.mode != "wise-ft":
        return Found(tuned, settings, (), tuple(epochs), faults, unusable)

    def measure(between: Any) -> float:
        verdict = judge(classifier, between, parts["validation"], batch_size=config.batch_size)
        return choice(verdict_metrics(classifier, verdict))

    between, alpha, curve = best_between(start, tuned, config.tune.alphas, measure)
    return Found(between, {"alpha": alpha}, curve, tuple(epochs), faults, unusable)


def _both(some: dict[str, int], more: dict[str, int]) -> dict[str, int]:
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


def _results(task: Task, found: Found, verdict: Verdict) -> dict[str, Any]:
    config, classifier = task.config, task.classifier
    prefix = "lp_" if config.mode == "probe" else ""
    metrics = {f"{prefix}{name}": value for name, value in verdict_metrics(classifier, verdict).items()}
    results: dict[str, Any] = {
        "dataset": Path((config.test or config.train).patterns[0]).parent.name,
        "model": Path(config.model).name,
        "pretrained": config.model,
        "task": _TASKS.get(config.mode, f"finetune_{config.mode}"),
        "metrics": {**metrics, **found.settings},
        "language": "en",
        "num_samples": len(verdict.targets),
        "features": classifier.features or "attention",
        "classnames": list(classifier.classnames),
        "skipped_samples": _both(found.faults, verdict.faults),
        "unusable_samples": [*found.unusable, *verdict.unusable],
    }
    if not classifier.multi_label:
        predicted = verdict.logits.argmax(axis=1)
        results["confusion"] = confusion_matrix(predicted, verdict.targets, len(classifier.classnames)).tolist()
    if found.curve:
        results["curve"] = [{"alpha": alpha, "validation": value} for alpha, value in found.curve]
    if found.epochs:
        results["epochs"] = [dataclasses.asdict(epoch) for epoch in found.epochs]
    return results
