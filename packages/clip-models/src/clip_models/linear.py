"""A matrix product with an optional bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros


class Linear(nnx.Module):
    """y = x W + b, in the dtype of x; the parameters are float32.

    Args:
        in_features: last dim of x.
        out_features: last dim of y.
        axes: logical names of the kernel's two dims.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        use_bias: whether there is a bias.
        rngs: source of keys.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str, str],
        kernel_init: Initializer,
        bias_init: Initializer = zeros,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32), axes=axes)
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), jnp.float32), axes=axes[1:]) if use_bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in_features] to [..., out_features]."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
