"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer

from clip_models.config import Activation, TransformerConfig
from clip_models.initializers import tower_initializers
from clip_models.linear import Linear
from clip_models.norm import tower_norm


def quick_gelu(x: jax.Array) -> jax.Array:
    """x·σ(1.702x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
}


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))); or, with several activations, fc2(a1(fc1(x)) · a2(fc1_2(x)) · …).

    NormFormer's normalises what fc2 takes.

    Args:
        config: of the tower.
        rngs: source of keys.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        init = tower_initializers(config)
        self.activations = config.activations

        def linear(into: int, out: int, axes: tuple[str, str], kernel_init: Initializer) -> Linear:
            return Linear(
                into,
                out,
                axes=axes,
                kernel_init=kernel_init,
                bias_init=init.mlp_bias,
                use_bias=config.use_bias,
                rngs=rngs,
            )

        for i in range(len(self.activations)):
            setattr(self, fc1_name(i), linear(config.width, config.mlp_dim, ("embed", "mlp"), init.fc1))
        normformer = config.block == "normformer"
        self.norm = tower_norm(config, size=config.mlp_dim, axes=("mlp",)) if normformer else None
        self.fc2 = linear(config.mlp_dim, config.width, ("mlp", "embed"), init.fc2)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d]."""
        factors = [
            ACTIVATIONS[activation](checkpoint_name(getattr(self, fc1_name(i))(x), "fc1"))
            for i, activation in enumerate(self.activations)
        ]
        hidden = functools.reduce(jax.lax.mul, factors)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return checkpoint_name(self.fc2(hidden), "fc2")


def fc1_name(index: int) -> str:
    """Names the first projections: ``fc1``, ``fc1_2``, ``fc1_3``, …, one for each activation."""
    return "fc1" if index == 0 else f"fc1_{index + 1}"
