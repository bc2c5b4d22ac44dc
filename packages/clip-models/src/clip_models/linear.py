"""Matrix products with optional biases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros

from clip_models.activations import in_use
from clip_models.config import TextConfig, VisionConfig
from clip_models.initializers import tower_initializers
from clip_models.products import product


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
        leading = "abcdefgh"[: x.ndim - 1]
        y = product(f"{leading}i,io->{leading}o", x, in_use(self.kernel, x.dtype))
        return y if self.bias is None else y + in_use(self.bias, x.dtype)


def tower_projection(config: VisionConfig | TextConfig, size: int | None, *, rngs: nnx.Rngs) -> Linear | None:
    """Makes a tower's projection to the shared embedding.

    Args:
        config: of the tower.
        size: of the shared embedding. None: there is no projection.
        rngs: source of keys.

    Returns:
        The projection, of pooled vectors.
    """
    if size is None:
        return None
    return Linear(
        config.pooled_dim,
        size,
        axes=("embed" if config.pooled_dim == config.width else "pooled", "projection"),
        kernel_init=tower_initializers(config).projection,
        use_bias=config.projection_bias,
        rngs=rngs,
    )
