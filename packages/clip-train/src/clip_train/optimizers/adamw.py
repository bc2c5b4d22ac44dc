"""AdamW, as image–text models are trained with it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from clip_train.optimizers.options import OptimizerConfig, check_fractions


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW's numbers, besides what every optimizer has.

    Attributes:
        kind: `"adamw"`.
        beta1: decay of the first moment.
        beta2: decay of the second moment; 0.95 keeps large batches stable.
        epsilon: added to the root of the second moment.

    References:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, for `beta2`.
    """

    kind: Literal["adamw"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        check_fractions(self, "beta1", "beta2")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon is above 0; got {self.epsilon}")

    def direction(self) -> optax.GradientTransformation:
        """The update before weight decay and learning rate."""
        return optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.epsilon)
