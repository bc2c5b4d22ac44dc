"""Distributed Shampoo in a run's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import optax
from jax.sharding import Mesh

from clip_train.optimizers.graft import Graft
from clip_train.optimizers.inverse_root import RootMethod
from clip_train.optimizers.options import OptimizerConfig, check_fractions
from clip_train.optimizers.shampoo import scale_by_shampoo


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedShampooConfig(OptimizerConfig):
    """Distributed Shampoo's numbers, besides what every optimizer has.

    Attributes:
        kind: `"distributed_shampoo"`.
        block_size: the longest side of a block, for all or for each tower: `{"text": 512, "vision": 512}`.
        beta1: decay of the momenta.
        beta2: decay of the statistics; at 1 they are summed up.
        nesterov: look ahead along the momentum.
        graft: the optimizer that gives each layer's update its size.
        start_preconditioning_step: updates before this one are the grafted optimizer's.
        preconditioning_compute_steps: roots are taken at every multiple of this many updates.
        moving_average_for_momentum: weigh what enters the momenta by 1 − `beta1`.
        matrix_epsilon: ridge of the roots, relative to the largest eigenvalue.
        diagonal_epsilon: added to the root of the grafted optimizer's accumulator.
        coupled_weight_decay: weight decay goes through the momenta.
        skip_preconditioning_dim_above: parameters with a longer dim follow the grafted optimizer.
        skip_preconditioning_rank_below: and those with fewer dims, not counting that of layers.
        failure_threshold: a root with a larger error is not used; the last good one stays.
        root_method: `newton` as published, or `eigh`, faster on CPUs and a little less exact.
        shard_over: the mesh axes whose devices share out blocks and roots.

    References:
        Anil et al., Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
    """

    kind: Literal["distributed_shampoo"] = "distributed_shampoo"
    block_size: int | dict[str, int] = 512
    beta1: float = 0.9
    beta2: float = 0.95
    nesterov: bool = True
    graft: Graft = "rmsprop_normalized"
    start_preconditioning_step: int = 25
    preconditioning_compute_steps: int = 20
    moving_average_for_momentum: bool = True
    matrix_epsilon: float = 1e-6
    diagonal_epsilon: float = 1e-10
    coupled_weight_decay: bool = False
    skip_preconditioning_dim_above: int = 4096
    skip_preconditioning_rank_below: int = 1
    failure_threshold: float = 0.1
    root_method: RootMethod = "newton"
    shard_over: tuple[Literal["data", "fsdp", "model"], ...] = ("data", "fsdp", "model")

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        check_fractions(self, "beta1")
        if not 0 < self.beta2 <= 1:
            raise ValueError(f"beta2 is in (0, 1]; got {self.beta2}")
        sizes = self.block_size.values() if isinstance(self.block_size, dict) else (self.block_size,)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"block_size is at least 1; got {self.block_size}")
        if self.preconditioning_compute_steps < 1:
            raise ValueError(f"preconditioning_compute_steps is at least 1; got {self.preconditioning_compute_steps}")
        for name in ("matrix_epsilon", "diagonal_epsilon", "failure_threshold", "skip_preconditioning_dim_above"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} is above 0; got {value}")
        if len(set(self.shard_over)) < len(self.shard_over):
            raise ValueError(f"shard_over names each mesh axis once; got {list(self.shard_over)}")

    def direction(
        self, *, is_stacked: Callable[[str], bool], mesh: Mesh | None, decay: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """The update before learning rate and decoupled weight decay.

        Args:
            is_stacked: whether the first axis of the parameter of this name is one of layers.
            mesh: whose devices share out the blocks.
            decay: what is added to updates before they enter the momenta, if weight decay is coupled.
        """
        return scale_by_shampoo(
            block_size=self.block_size,
            beta1=self.beta1,
            beta2=self.beta2,
            nesterov=self.nesterov,
            graft=self.graft,
            start_preconditioning_step=self.start_preconditioning_step,
            preconditioning_compute_steps=self.preconditioning_compute_steps,
            moving_average_for_momentum=self.moving_average_for_momentum,
            matrix_epsilon=self.matrix_epsilon,
            diagonal_epsilon=self.diagonal_epsilon,
            coupled=decay if self.coupled_weight_decay else optax.identity(),
            skip_preconditioning_dim_above=self.skip_preconditioning_dim_above,
            skip_preconditioning_rank_below=self.skip_preconditioning_rank_below,
            failure_threshold=self.failure_threshold,
            root_method=self.root_method,
            is_stacked=is_stacked,
            mesh=mesh,
            shard_over=self.shard_over,
        )
