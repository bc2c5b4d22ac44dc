"""Muon: the momentum of hidden matrices, orthogonalised layer by layer; AdamW for everything else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from clip_train.optimizers.names import map_named
from clip_train.optimizers.options import OptimizerConfig, check_fractions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon's numbers, besides what every optimizer has.

    Muon's updates are scaled to the root mean square of AdamW's, so that one learning rate and one decay serve both;
    `matrix_learning_rate_scale` gives the matrices another.

    Attributes:
        kind: `"muon"`.
        momentum: decay of Muon's momentum.
        nesterov: look ahead along it.
        num_iterations: of Newton–Schulz.
        update_rms: root mean square of Muon's update before the learning rate.
        matrix_learning_rate_scale: times the learning rate, for the matrices that are Muon's; their decay goes with it.
        beta1: AdamW's.
        beta2: AdamW's.
        epsilon: AdamW's.

    References:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
        Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982, for `update_rms`.
    """

    kind: Literal["muon"] = "muon"
    momentum: float = 0.95
    nesterov: bool = True
    num_iterations: int = 5
    update_rms: float = 0.2
    matrix_learning_rate_scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        check_fractions(self, "momentum", "beta1", "beta2")
        for name in ("num_iterations", "update_rms", "matrix_learning_rate_scale", "epsilon"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} is above 0; got {value}")

    def direction(self, is_hidden: Callable[[str, Any], bool]) -> optax.GradientTransformation:
        """The update before weight decay and learning rate.

        Args:
            is_hidden: whether Muon takes the parameter of this name; its last two dims are the matrix.
        """

        def dims(tree: Any) -> Any:
            return jax.tree.map(lambda array: MuonDimensionNumbers(array.ndim - 2, array.ndim - 1), tree)

        def scale(updates: Any, _: Any = None) -> Any:
            # An orthogonal [m, n] has the root mean square 1 / √max(m, n).
            return jax.tree.map(lambda array: array * self.update_rms * math.sqrt(max(array.shape[-2:])), updates)

        muon = scale_by_muon(
            ns_steps=self.num_iterations, beta=self.momentum, nesterov=self.nesterov, weight_dimension_numbers=dims
        )
        return optax.partition(
            {
                "muon": optax.chain(muon, optax.stateless(scale)),
                "adamw": optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.epsilon),
            },
            lambda tree: map_named(lambda name, array: "muon" if is_hidden(name, array) else "adamw", tree),
        )
