"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import optax

from clip_train.optimizers.options import OptimizerConfig, check_fractions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LionConfig(OptimizerConfig):
    """Lion's numbers, besides what every optimizer has; against AdamW's a tenth of the rate and ten times the decay.

    Attributes:
        kind: `"lion"`.
        beta1: weighs the momentum against the gradient in the update.
        beta2: decay of the momentum.

    References:
        Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.
    """

    relative_rate: ClassVar[float] = 0.1

    kind: Literal["lion"] = "lion"
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        check_fractions(self, "beta1", "beta2")

    def direction(self) -> optax.GradientTransformation:
        """The update before weight decay and learning rate."""
        return optax.scale_by_lion(b1=self.beta1, b2=self.beta2)
