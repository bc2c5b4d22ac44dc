"""Adafactor as big_vision has it: second moments by rows and columns, the first in bfloat16, no relative steps."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from clip_train.optimizers.options import OptimizerConfig, check_fractions


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor's numbers, besides what every optimizer has.

    Attributes:
        kind: `"adafactor"`.
        momentum: decay of the first moment, kept in bfloat16; 0 keeps none.
        decay_exponent: the second moment's decay at update t is 1 − t^−`decay_exponent`, …
        beta2_cap: … but at most this.
        min_dim_to_factor: arrays whose second longest dim is shorter keep a whole second moment.
        clip_threshold: each parameter's update is cut to this root mean square; `None` leaves it.

    References:
        Shazeer and Stern, Adafactor, arXiv 1804.04235.
        Zhai et al., Scaling Vision Transformers, arXiv 2106.04560, §3.4, for this variant.
    """

    kind: Literal["adafactor"] = "adafactor"
    momentum: float = 0.9
    decay_exponent: float = 0.8
    beta2_cap: float = 0.999
    min_dim_to_factor: int = 32
    clip_threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        check_fractions(self, "momentum", "beta2_cap")
        for name in ("decay_exponent", "min_dim_to_factor", "clip_threshold"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is above 0; got {value}")

    def direction(self) -> optax.GradientTransformation:
        """The update before weight decay and learning rate."""

        def decay(count: jax.typing.ArrayLike, exponent: jax.typing.ArrayLike) -> jax.Array:
            return jnp.minimum(self.beta2_cap, 1 - (jnp.asarray(count, jnp.float32) + 1) ** -jnp.asarray(exponent))

        parts = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent, min_dim_size_to_factor=self.min_dim_to_factor, decay_rate_fn=decay
            )
        ]
        if self.clip_threshold is not None:
            parts.append(optax.clip_by_block_rms(self.clip_threshold))
        if self.momentum:
            parts.append(optax.ema(self.momentum, debias=False, accumulator_dtype=jnp.bfloat16))
        return optax.chain(*parts)
