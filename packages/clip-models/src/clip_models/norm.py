"""Normalisation of vectors: LayerNorm and RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.transformer_config import Norm as NormKind
from clip_models.transformer_config import TransformerConfig


class Norm(nnx.Module):
    """Normalises the last dim, then scales and shifts it; in float32 whatever comes in.

    ``layernorm`` makes its mean 0 and its variance 1, ``rmsnorm`` its mean square 1.

    Args:
        size: of the last dim.
        kind: which.
        eps: added to the variance, or the mean square.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        axes: logical name of the dim.
    """

    def __init__(
        self,
        size: int,
        *,
        kind: NormKind,
        eps: float,
        use_scale: bool = True,
        use_bias: bool = True,
        axes: tuple[str] = ("norm",),
    ):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32), axes=axes) if use_scale else None
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32), axes=axes) if use_bias else None
        self.kind = kind
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d] of the same dtype."""
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


def tower_norm(
    config: TransformerConfig, *, size: int | None = None, scaled: bool | None = None, axes: tuple[str] = ("norm",)
) -> Norm:
    """Makes a norm as a tower has them.

    Args:
        config: of the tower.
        size: of the normalised dim; None: the tower's width.
        scaled: whether it has a scale; None: as the config says.
        axes: logical name of the dim.

    Returns:
        The norm.
    """
    return Norm(
        config.width if size is None else size,
        kind=config.norm,
        eps=config.norm_eps,
        use_scale=config.norm_scale if scaled is None else scaled,
        use_bias=bool(config.norm_bias),
        axes=axes,
    )
