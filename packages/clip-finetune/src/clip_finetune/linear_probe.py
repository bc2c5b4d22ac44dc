"""A linear head fitted to the features of a frozen tower."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_finetune.objective import SampleLoss
from clip_train.probe import ProbeConfig, fit_probe, sweep_weight_decay


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
