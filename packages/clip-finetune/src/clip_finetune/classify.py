"""`clip-finetune classify`: a classifier on a checkpoint's image tower, from config to results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_data import DataError
from clip_finetune.backbone import labelled_features, load_backbone
from clip_finetune.classifier import Classifier, image_tower_of
from clip_finetune.config import FinetuneConfig
from clip_finetune.judge import Verdict, choice, judge, verdict_metrics
from clip_finetune.objective import SampleLoss, sample_loss
from clip_finetune.page import write_page
from clip_finetune.samples import Part, Samples, Split, check_classes
from clip_finetune.tune import Epoch, tune
from clip_finetune.wise_ft import best_between
from clip_finetune.zero_shot import find_prompts, zero_shot_head
from clip_models import ClipConfig
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.evaluate import is_multi_label, read_classnames
from clip_train.metrics import confusion_matrix
from clip_train.output import environment, write_json
from clip_train.probe import ProbeConfig, fit_probe, sweep_weight_decay
from clip_train.screen import make_console, percent, show_facts

_NUM_MISTAKES = 24
_TASKS = {"probe": "linear_probe", "zero-shot": "zeroshot_classification"}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a mode came to.

    Attributes:
        params: of the classifier.
        settings: what it chose, such as a weight decay.
        curve: for `wise-ft`, the metric that was chosen by at each alpha, `(alpha, on validation)`.
        epochs: of training by gradient.
    """

    params: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    epochs: tuple[Epoch, ...] = ()


def classify(config: FinetuneConfig) -> int:
    """Learn the classes as the config's mode says, report on the test samples, and save the classifier.

    Args:
        config: of the task.

    Returns:
        The exit status.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    output = Path(config.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output_dir: {output} is there already and not empty; give another: --set output_dir=DIR")
    with located("model"):
        model, params = load_backbone(config.model)
    with located("classnames"):
        classnames = read_classnames(config.classnames, config.train)
        check_classes(config.train, classnames)
    parts = {part: _samples(config, classnames, part) for part in ("train", "validation", "test")}
    features = None if config.mode == "attention" else config.feature_kind
    classifier = Classifier(image_tower_of(model), classnames, features, parts["train"].multi_label)
    facts = [
        ("model", config.model),
        ("mode", config.mode),
        ("classes", ", ".join(classnames[:12]) + (" …" if len(classnames) > 12 else "")),
        ("output", str(output)),
    ]
    show_facts(console, "clip-finetune classify", facts)

    def tell(epoch: Epoch) -> None:
        shown = "  ".join(f"{name} {percent(value)}" for name, value in epoch.metrics.items())
        console.print(f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  validation {shown}")

    found = _learn(config, model, params, classifier, parts, tell)
    with located("test" if config.test else "train", (ValueError, OSError, DataError)):
        verdict = judge(
            classifier, found.params, parts["test"], batch_size=config.batch_size, num_mistakes=_NUM_MISTAKES
        )
    results = _results(config, classifier, found, verdict)
    output.mkdir(parents=True, exist_ok=True)
    classifier.save(output / "classifier", found.params)
    write_json(output / "config.json", config_to_json(config))
    write_json(output / "environment.json", environment())
    write_page(output / "report.html", config_to_json(config), classifier, results, verdict)
    write_json(output / "results.json", results)
    shown = [(name, percent(value)) for name, value in verdict_metrics(classifier, verdict).items()]
    chosen = [(name.replace("_", " "), f"{value:g}") for name, value in found.settings.items()]
    prefix = "lp_" if config.mode == "probe" else ""
    lines = [(prefix + name, value) for name, value in shown]
    show_facts(console, "Finished", [*lines, *chosen, ("report", str(output / "report.html"))])
    if verdict.faults:
        console.print(f"Not usable: {', '.join(f'{n} {reason}' for reason, n in verdict.faults.items())}")
    return 0


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


def _samples(config: FinetuneConfig, classnames: tuple[str, ...], part: Part) -> Samples:
    given = {"train": config.train, "validation": config.validation, "test": config.test}[part]
    split = None
    if given is None or part == "train":
        split = Split(
            part=part,
            validation=0.0 if config.validation else config.split.validation,
            test=0.0 if config.test else config.split.test,
            seed=config.seed,
        )
    multi_label = is_multi_label(config.multi_label, config.train)
    return Samples(given or config.train, classnames, multi_label, split)


def _learn(
    config: FinetuneConfig,
    model: ClipConfig,
    params: Any,
    classifier: Classifier,
    parts: dict[str, Samples],
    tell: Any,
) -> Found:
    """The classifier of a mode."""
    tower = {"vision": params["vision"]}
    options = {"kind": classifier.features or "mean", "batch_size": config.batch_size}
    settings: dict[str, Any] = {}
    if config.head_from == "zero-shot":
        with located("templates"):
            prompts = find_prompts(classifier.classnames, config.templates, config.train)
        with located("mode" if config.mode == "zero-shot" else "tune.head"):
            head = zero_shot_head(model, params, prompts, multi_label=classifier.multi_label)
        if config.mode == "zero-shot":
            return Found({**tower, "head": head})
    faults = (ValueError, OSError, DataError)
    with located("train", faults):
        features, targets, _ = labelled_features(classifier.config, tower, parts["train"], **options)
    loss = sample_loss(
        len(classifier.classnames),
        class_weights=_class_weights(config, targets, len(classifier.classnames)),
        label_smoothing=config.label_smoothing,
    )
    if config.head_from == "probe":
        with located("validation" if config.validation else "train", faults):
            held_out = labelled_features(classifier.config, tower, parts["validation"], **options)[:2]
        head, decay = fit_head(
            features,
            targets,
            held_out,
            config.probe,
            num_classes=len(classifier.classnames),
            loss=loss,
            seed=config.seed,
        )
        settings = {"weight_decay": decay}
        if config.mode == "probe":
            return Found({**tower, "head": head}, {**settings, "epochs": config.probe.epochs})
    elif config.head_from == "random":
        head = classifier.head.init(jax.random.key(config.seed))
    start = {**tower, "head": head}
    with located("train", faults):
        tuned, epochs = tune(
            classifier,
            start,
            parts["train"],
            parts["validation"],
            config.tune,
            mode=config.mode,
            loss=loss,
            num_train=len(targets),
            eval_batch_size=config.batch_size,
            seed=config.seed,
            tell=tell,
        )
    if config.mode != "wise-ft":
        return Found(tuned, settings, epochs=tuple(epochs))

    def measure(between: Any) -> float:
        verdict = judge(classifier, between, parts["validation"], batch_size=config.batch_size)
        return choice(verdict_metrics(classifier, verdict))

    between, alpha, curve = best_between(start, tuned, config.tune.alphas, measure)
    return Found(between, {"alpha": alpha}, curve, tuple(epochs))


def _class_weights(config: FinetuneConfig, targets: np.ndarray, num_classes: int) -> tuple[float, ...] | None:
    given = config.class_weights
    if given is None or not isinstance(given, str):
        if given is not None and len(given) != num_classes:
            raise ConfigError(f"class_weights: one for each of {num_classes} classes, or balanced; got {len(given)}")
        return given
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=num_classes)
    weights = counts.sum() / (num_classes * np.maximum(counts, 1))
    return tuple(float(weight) for weight in weights)


def _results(config: FinetuneConfig, classifier: Classifier, found: Found, verdict: Verdict) -> dict[str, Any]:
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
        "skipped_samples": verdict.faults,
        "unusable_samples": list(verdict.unusable),
    }
    if not classifier.multi_label:
        predicted = verdict.logits.argmax(axis=1)
        results["confusion"] = confusion_matrix(predicted, verdict.targets, len(classifier.classnames)).tolist()
    if found.curve:
        results["curve"] = [{"alpha": alpha, "validation": value} for alpha, value in found.curve]
    if found.epochs:
        results["epochs"] = [dataclasses.asdict(epoch) for epoch in found.epochs]
    return results
