"""AdamW as image–text models are trained with it: matrices decay, vectors and scalars do not, gradients are clipped."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW's numbers.

    Attributes:
        kind: `"adamw"`.
        learning_rate: the peak; by default 1e-3 from random weights and 1e-5 from pretrained ones.
        beta1: decay of the first moment.
        beta2: decay of the second moment; 0.95 keeps large batches stable.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate; on matrices only.
        clip_norm: the gradient's global norm is cut to this; `None` leaves it.

    References:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, for `beta2`.
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is in [0, 1); got {getattr(self, name)}")
        for name in ("learning_rate", "epsilon", "clip_norm"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is above 0; got {value}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is ≥ 0; got {self.weight_decay}")


def make_optimizer(
    config: AdamWConfig, learning_rate: optax.ScalarOrSchedule, *, axes: Any = None
) -> optax.GradientTransformation:
    """Build the optimizer.

    Args:
        config: its numbers; `config.learning_rate` is not read.
        learning_rate: a number or a schedule.
        axes: a tree of axis names like the parameters'; what has at least two axes besides `"layers"` decays. Without
            it, every array of two or more dimensions does.
    """

    def decays(params: Any) -> Any:
        if axes is None:
            return jax.tree.map(lambda p: p.ndim >= 2, params)
        return jax.tree.map(lambda _, names: sum(name != "layers" for name in names) >= 2, params, axes)

    adamw = optax.adamw(
        learning_rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decays,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
