"""From an optimizer's config to optax: clip, direction, decay, rates by parameter, schedule, clamp."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import pydantic
from jax.sharding import Mesh

from clip_train.optimizers.adafactor import AdafactorConfig
from clip_train.optimizers.adamw import AdamWConfig
from clip_train.optimizers.distributed_shampoo import DistributedShampooConfig
from clip_train.optimizers.lion import LionConfig
from clip_train.optimizers.muon import MuonConfig
from clip_train.optimizers.names import map_named
from clip_train.optimizers.options import OptimizerConfig, ParameterOptions


def _kind_of(given: Any) -> Any:
    return given.get("kind", "adamw") if isinstance(given, dict) else getattr(given, "kind", None)


# The kind is chosen before it is read, so that a fault is told of one kind and not of all.
Optimizer = Annotated[
    Annotated[AdamWConfig, pydantic.Tag("adamw")]
    | Annotated[AdafactorConfig, pydantic.Tag("adafactor")]
    | Annotated[LionConfig, pydantic.Tag("lion")]
    | Annotated[MuonConfig, pydantic.Tag("muon")]
    | Annotated[DistributedShampooConfig, pydantic.Tag("distributed_shampoo")],
    pydantic.Discriminator(_kind_of),
]


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.ScalarOrSchedule, *, axes: Any = None, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """Build the optimizer.

    Args:
        config: one of the kinds; `config.learning_rate` is not read.
        learning_rate: a number or a schedule.
        axes: a tree of axis names like the parameters'. By it, what has at least two axes besides `"layers"` is a
            matrix, stacked layers are treated one by one, and patterns are checked. Without it, every array of two or
            more dimensions is a matrix.
        mesh: over which Shampoo shares out its blocks.

    Returns:
        A transformation whose state leaves frozen parameters out. They may be left out of the gradients as well, as
        `None`; where they are not, their updates are zero.

    Raises:
        ValueError: a pattern in `config.parameters` matches nothing.
    """
    options = ParameterOptions(config, axes)
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    decay = optax.stateless(
        lambda updates, params: map_named(
            lambda name, update, param: update + options.weight_decay(name, param) * param, updates, params
        )
    )
    tx = optax.chain(
        clip,
        _direction(config, options, mesh, decay),
        optax.identity() if _coupled(config) else decay,
        optax.stateless(
            lambda updates, _: map_named(lambda _, u, by: u * by, updates, _scales(config, options, updates))
        ),
        optax.scale_by_learning_rate(learning_rate),
        optax.identity() if config.max_logit_scale is None else _clamp(config.max_logit_scale),
    )
    return _without_frozen(tx, options)


def _direction(
    config: OptimizerConfig, options: ParameterOptions, mesh: Mesh | None, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    match config:
        case AdamWConfig() | AdafactorConfig() | LionConfig():
            return config.direction()
        case MuonConfig():
            return config.direction(options.hidden_matrix)
        case DistributedShampooConfig():
            return config.direction(is_stacked=options.stacked, mesh=mesh, decay=decay)
    raise ValueError(f"an optimizer's config is one of the kinds in clip_train.optimizers; got {config!r}")


def _scales(config: OptimizerConfig, options: ParameterOptions, updates: Any) -> Any:
    """Each parameter's multiple of the learning rate."""
    scales = options.learning_rate_scales(updates)
    if not isinstance(config, MuonConfig):
        return scales
    of_matrices = config.matrix_learning_rate_scale
    return map_named(lambda name, u, by: by * of_matrices if options.hidden_matrix(name, u) else by, updates, scales)


def _coupled(config: OptimizerConfig) -> bool:
    return isinstance(config, DistributedShampooConfig) and config.coupled_weight_decay


def _clamp(max_logit_scale: float) -> optax.GradientTransformation:
    """Updates that leave `logit_scale`, a logarithm, at most at that of a maximum."""
    limit = math.log(max_logit_scale)

    def clamp(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        return jnp.minimum(update, limit - param) if name == "logit_scale" else update

    return optax.stateless(lambda updates, params: map_named(clamp, updates, params))


def _without_frozen(tx: optax.GradientTransformation, options: ParameterOptions) -> optax.GradientTransformation:
    def prune(tree: Any) -> Any:
        return map_named(lambda name, leaf: None if options.frozen(name) else leaf, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        made, state = tx.update(prune(updates), state, None if params is None else prune(params))
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return jax.tree.map(lambda zero, new: zero if new is None else new, zeros, made), state

    return optax.GradientTransformation(lambda params: tx.init(prune(params)), update)
