"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx

from clip_models.config import TransformerConfig
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear


def quick_gelu(x: jax.Array) -> jax.Array:
    """x·σ(1.702x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))).

    Args:
        config: of the tower.
        rngs: source of keys.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        init = tower_initializers(config)
        self.fc1 = Linear(
            config.width,
            config.mlp_dim,
            axes=("embed", "mlp"),
            kernel_init=init.fc1,
            bias_init=init.mlp_bias,
            rngs=rngs,
        )
        self.fc2 = Linear(
            config.mlp_dim,
            config.width,
            axes=("mlp", "embed"),
            kernel_init=init.fc2,
            bias_init=init.mlp_bias,
            rngs=rngs,
        )
        self.activation = config.activations[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
