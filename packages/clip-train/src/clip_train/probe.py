"""A linear classifier on features that stay as they are: by AdamW as CLIP_benchmark does, or to its one minimum.

It is what `linear_probe` evaluates with and what `clip_finetune` puts on a frozen tower: one sweep, two solvers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_train.metrics import mean_average_precision

Probe = dict[str, np.ndarray]
"""`kernel` float32 `[d, c]` and `bias` float32 `[c]`: logits are features · kernel + bias."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Logits float32 `[b, c]` and targets, int `[b]` or multi-hot `[b, c]`, to one loss for each sample `[b]`."""

_STRENGTHS = {"adamw": np.logspace(-6, 2, num=97).tolist(), "lbfgs": np.logspace(-4, 3, num=97).tolist()}
_SMALLEST_GRADIENT = 1e-5
_LAST = 96
_FIRST = range(0, _LAST + 1, 16)
_SPANS = (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the classifier is trained.

    Attributes:
        solver: `adamw` with a cosine, as CLIP_benchmark does, whose numbers it gives; or `lbfgs`, on all samples at
            once until the gradient is nothing: logistic regression, as scikit-learn's and OpenAI's, without a rate.
        learning_rate: of AdamW, its peak; it decays as a cosine to zero.
        epochs: of AdamW, times that the samples are gone through.
        batch_size: of AdamW, samples in an update.
        iterations: of L-BFGS, at most.
        weight_decay: of AdamW; or λ of L-BFGS, which adds λ/2·‖kernel‖² to the mean loss: scikit-learn's C is 1/(λ·n).
            `None` takes the best on held-out samples of 97 strengths, of AdamW from 1e-6 to 100, of λ·n from 1e-4 to
            1000.
    """

    solver: Literal["adamw", "lbfgs"] = "adamw"
    learning_rate: float = 0.1
    epochs: int = 10
    batch_size: int = 64
    iterations: int = 1000
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        if self.solver not in _STRENGTHS:
            raise ValueError(f"solver is adamw or lbfgs; got {self.solver!r}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is above 0; got {self.learning_rate}")
        for name in ("epochs", "batch_size", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay is ≥ 0; got {self.weight_decay}")


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of a sample: softmax where it has one class, the mean of sigmoids where `targets` is multi-hot."""
    if targets.ndim == 2:
        return optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype)).mean(axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def fit_probe(
    features: np.ndarray,
    targets: np.ndarray,
    config: ProbeConfig,
    *,
    num_classes: int,
    weight_decay: float,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Probe:
    """Train the classifier.

    Args:
        features: float32 `[n, d]`.
        targets: int `[n]`, or multi-hot `[n, c]`.
        config: of the training; its `weight_decay` is not read.
        num_classes: c.
        weight_decay: of kernel and bias, or λ of the kernel.
        loss: of a sample; a function of a module, or one object for all calls: another one compiles again.
        seed: of AdamW's first weights and order of samples.

    Example:
        >>> features = np.array([[1.0, 0.0], [0.0, 1.0]] * 8, np.float32)
        >>> labels = np.array([0, 1] * 8)
        >>> probe = fit_probe(features, labels, ProbeConfig(batch_size=4), num_classes=2, weight_decay=0.0)
        >>> probe_logits(probe, features).argmax(axis=1)[:4].tolist()
        [0, 1, 0, 1]
    """
    num, width = features.shape
    if config.solver == "lbfgs":
        zeros = {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}
        probe = _minimise(
            zeros, jnp.asarray(features), jnp.asarray(targets), weight_decay, config.iterations, loss=loss
        )
        return {name: np.asarray(value) for name, value in probe.items()}
    rng = np.random.default_rng(seed)
    bound = width**-0.5
    kernel = rng.uniform(-bound, bound, (width, num_classes)).astype(np.float32)
    bias = rng.uniform(-bound, bound, num_classes).astype(np.float32)
    steps = -(-num // config.batch_size)
    # The last batch of an epoch is filled up with rows that count for nothing.
    order = np.full((config.epochs, steps * config.batch_size), -1)
    for row in order:
        row[:num] = rng.permutation(num)
    probe = _fit(
        {"kernel": kernel, "bias": bias},
        jnp.asarray(features),
        jnp.asarray(targets),
        jnp.asarray(order.reshape(config.epochs * steps, config.batch_size)),
        weight_decay,
        config.learning_rate,
        loss=loss,
    )
    return {name: np.asarray(value) for name, value in probe.items()}


def probe_logits(probe: Probe, features: np.ndarray) -> np.ndarray:
    """Logits float32 `[n, c]` of features float32 `[n, d]`."""
    return features @ probe["kernel"] + probe["bias"]


def sweep_weight_decay(
    features: np.ndarray,
    targets: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray],
    config: ProbeConfig,
    *,
    num_classes: int,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> float:
    """The strength whose classifier is best on held-out samples: of seven first, then nearer and nearer to the best.

    Args:
        features: float32 `[n, d]`, to train on.
        targets: int `[n]`, or multi-hot `[n, c]`.
        held_out: features and targets to judge by. AdamW: by accuracy, or mean average precision of multi-hot targets;
            L-BFGS: the strongest whose loss is within a standard error of the least.
        config: of the training.
        num_classes: c.
        loss: of a sample.
        seed: of each training.

    References:
        Radford et al., arXiv 2103.00020, appendix A.3, and CLIP_benchmark's `linear_probe.py`, whose sweep it is;
        Breiman et al., Classification and Regression Trees, 1984, whose rule of one standard error it is.
    """

    # Many samples need less: the penalty weighs against the sum of their losses, as scikit-learn's 1/C does.
    strengths = [s / len(features) if config.solver == "lbfgs" else s for s in _STRENGTHS[config.solver]]

    tried: dict[int, tuple[float, float]] = {}

    def score(index: int) -> float:
        decay = strengths[index]
        probe = fit_probe(features, targets, config, num_classes=num_classes, weight_decay=decay, loss=loss, seed=seed)
        logits = probe_logits(probe, held_out[0])
        if config.solver == "lbfgs":
            losses = np.asarray(loss(jnp.asarray(logits), jnp.asarray(held_out[1])))
            tried[index] = float(losses.mean()), float(losses.std()) / len(losses) ** 0.5
            return -tried[index][0]
        if held_out[1].ndim == 2:
            return mean_average_precision(logits, held_out[1])
        return float((logits.argmax(axis=1) == held_out[1]).mean())

    best = peak(score)
    if config.solver == "lbfgs":
        most = sum(tried[best])
        best = max(index for index, (cost, _) in tried.items() if cost <= most)
    return strengths[best]


def peak(score: Callable[[int], float]) -> int:
    """The best of 97 strengths: of seven first, then nearer and nearer; of equal ones the first that is looked at.

    Args:
        score: of a strength's number, from 0 on; each is asked for once.

    Example:
        >>> peak(lambda number: -abs(number - 40))
        40
    """
    once = functools.cache(score)
    best = max(_FIRST, key=once)
    for span in _SPANS:
        best = max((max(best - span, 0), best, min(best + span, _LAST)), key=once)
    return best


@functools.partial(jax.jit, static_argnames="loss")
def _fit(
    probe: dict[str, jax.Array],
    features: jax.Array,
    targets: jax.Array,
    order: jax.Array,
    weight_decay: jax.Array,
    learning_rate: jax.Array,
    *,
    loss: Loss,
) -> dict[str, jax.Array]:
    steps = len(order)

    def schedule(step: Any) -> jax.Array:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))

    tx = optax.adamw(schedule, weight_decay=weight_decay)

    def mean_loss(probe: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        logits = features[rows] @ probe["kernel"] + probe["bias"]
        real = rows >= 0
        return jnp.where(real, loss(logits, targets[rows]), 0).sum() / real.sum()

    def update(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        probe, state = carry
        updates, state = tx.update(jax.grad(mean_loss)(probe, rows), state, probe)
        return (optax.apply_updates(probe, updates), state), None

    (probe, _), _ = jax.lax.scan(update, (probe, tx.init(probe)), order)
    return probe


@functools.partial(jax.jit, static_argnames="loss")
def _minimise(
    probe: dict[str, jax.Array],
    features: jax.Array,
    targets: jax.Array,
    weight_decay: jax.Array,
    iterations: jax.Array,
    *,
    loss: Loss,
) -> dict[str, jax.Array]:
    def cost(probe: dict[str, jax.Array]) -> jax.Array:
        penalty = 0.5 * weight_decay * jnp.square(probe["kernel"]).sum()
        return loss(features @ probe["kernel"] + probe["bias"], targets).mean() + penalty

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(cost)

    def update(carry: tuple) -> tuple:
        probe, state, step, _ = carry
        value, grads = value_and_grad(probe, state=state)
        updates, state = tx.update(grads, state, probe, value=value, grad=grads, value_fn=cost)
        return optax.apply_updates(probe, updates), state, step + 1, optax.tree.norm(grads)

    def goes_on(carry: tuple) -> jax.Array:
        return (carry[2] < iterations) & (carry[3] > _SMALLEST_GRADIENT)

    return jax.lax.while_loop(goes_on, update, (probe, tx.init(probe), 0, jnp.inf))[0]
