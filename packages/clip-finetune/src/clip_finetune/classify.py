"""`clip-finetune classify`: a linear probe on a checkpoint's image tower, from config to results."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_finetune.backbone import labelled_features, load_backbone
from clip_finetune.config import FinetuneConfig, ProbeConfig
from clip_finetune.heads import LinearHead
from clip_finetune.objective import classification_loss
from clip_train import TrainState, fit, make_step
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.evaluate import read_classnames
from clip_train.metrics import classification_metrics, confusion_matrix
from clip_train.output import write_json
from clip_train.screen import make_console, percent, show_facts


def classify(config: FinetuneConfig) -> int:
    """Embed the samples once, fit the head, report on the test samples.

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
    with located("train"):
        features, labels = labelled_features(model, params, config.train, batch_size=config.batch_size)
    with located("test"):
        test_features, test_labels = labelled_features(model, params, config.test, batch_size=config.batch_size)
    with located("classnames"):
        classnames = read_classnames(config.classnames, config.train)
    if (largest := max(labels.max(), test_labels.max())) >= len(classnames):
        raise ConfigError(f"classnames: {len(classnames)} names for labels up to {largest}; give one name per label")
    facts = [
        ("model", config.model),
        ("features", f"pooled vector and mean token of the frozen image tower, width {features.shape[1]}"),
        ("data", f"{len(labels):,} samples to learn from, {len(test_labels):,} to report on"),
        ("classes", ", ".join(classnames[:12]) + (" …" if len(classnames) > 12 else "")),
        ("output", str(output)),
    ]
    show_facts(console, "clip-finetune classify", facts)

    head = LinearHead(num_classes=len(classnames), width=features.shape[1])
    decay = choose_weight_decay(head, features, labels, config.probe, seed=config.seed)
    head_params = fit_probe(head, features, labels, config.probe, weight_decay=decay, seed=config.seed)
    logits = np.asarray(head.apply(head_params, jnp.asarray(test_features)))
    metrics = {f"lp_{name}": value for name, value in classification_metrics(logits, test_labels).items()}

    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "head.npz", kernel=np.asarray(head_params["kernel"]), bias=np.asarray(head_params["bias"]))
    write_json(output / "config.json", config_to_json(config))
    results = {
        "dataset": Path(config.test.patterns[0]).parent.name,
        "model": config.model,
        "task": "linear_probe",
        "metrics": {**metrics, "weight_decay": decay, "epochs": config.probe.num_steps},
        "features": "pooled and mean token",
        "num_samples": len(test_labels),
        "classnames": list(classnames),
        "confusion": confusion_matrix(logits.argmax(axis=1), test_labels, len(classnames)).tolist(),
    }
    write_json(output / "results.json", results)
    shown = [(name, percent(value)) for name, value in metrics.items()]
    show_facts(console, "Finished", [*shown, ("weight decay", f"{decay:g}"), ("results", str(output / "results.json"))])
    return 0


def choose_weight_decay(
    head: LinearHead, features: np.ndarray, labels: np.ndarray, probe: ProbeConfig, *, seed: int
) -> float:
    """The strength whose probe is most accurate on samples held back from it; among equals the largest.

    Args:
        head: the classifier.
        features: float32 `[n, d]`.
        labels: int `[n]`.
        probe: strengths to try, and how many samples to hold back.
        seed: of the split.
    """
    if len(probe.weight_decay) == 1:
        return probe.weight_decay[0]
    order = np.random.default_rng(seed).permutation(len(labels))
    held_back = max(round(len(labels) * probe.validation_fraction), 1)
    validation, train = order[:held_back], order[held_back:]

    def accuracy(decay: float) -> float:
        params = fit_probe(head, features[train], labels[train], probe, weight_decay=decay, seed=seed)
        logits = np.asarray(head.apply(params, jnp.asarray(features[validation])))
        return classification_metrics(logits, labels[validation])["acc1"]

    return max(sorted(probe.weight_decay, reverse=True), key=accuracy)


def fit_probe(
    head: LinearHead, features: np.ndarray, labels: np.ndarray, probe: ProbeConfig, *, weight_decay: float, seed: int
) -> dict[str, Any]:
    """Train the head on all samples at once, with AdamW and a cosine, on features of mean 0 and deviation 1.

    Args:
        head: the classifier.
        features: float32 `[n, d]`.
        labels: int `[n]`.
        probe: number of updates and learning rate.
        weight_decay: on the kernel.
        seed: of the head's first weights.

    Returns:
        The head's parameters, for features as they come: the standardisation is folded into them.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    schedule = optax.cosine_decay_schedule(probe.learning_rate, probe.num_steps)
    tx = optax.adamw(schedule, weight_decay=weight_decay, mask={"kernel": True, "bias": False})
    params = head.init(jax.random.key(seed))
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))
    batch = {"features": jnp.asarray((features - mean) / std), "label": jnp.asarray(labels)}
    step = make_step(classification_loss(head.apply), tx, seed=seed)
    state, _ = fit(state, step, itertools.repeat(batch), num_steps=probe.num_steps)
    kernel = state.params["kernel"] / std[:, None]
    return {"kernel": kernel, "bias": state.params["bias"] - mean @ kernel}
