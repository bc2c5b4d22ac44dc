"""Layer normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class LayerNorm(nnx.Module):
    """Normalises the last dim to mean 0 and variance 1, then scales and shifts it; in float32 whatever comes in.

    Args:
        width: size of the last dim.
        eps: added to the variance.
    """

    def __init__(self, width: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d] of the same dtype."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        variance = jnp.square(y).mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)
