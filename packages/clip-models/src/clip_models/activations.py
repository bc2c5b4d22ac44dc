"""A place for the caller's hand on activations: the towers name their axes, and whoever knows devices places them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

Constrain = Callable[[jax.Array, tuple[str, ...]], jax.Array]

_constrain: contextvars.ContextVar[Constrain | None] = contextvars.ContextVar("constrain", default=None)


@contextlib.contextmanager
def constrain_activations(constrain: Constrain) -> Iterator[None]:
    """Passes activations through a function of yours, while the towers are traced inside this context.

    Args:
        constrain: takes an activation and the names of its dims, and returns it placed, as
            ``jax.lax.with_sharding_constraint`` does. It sees what goes from one block to the next, named
            ``("batch", "length", "embed")``, and every weight where it is used, named as in
            :func:`clip_models.logical_axes` but without ``layers``.
    """
    token = _constrain.set(constrain)
    try:
        yield
    finally:
        _constrain.reset(token)


def constraining() -> bool:
    """Says whether there is a surrounding :func:`constrain_activations`."""
    return _constrain.get() is not None


def constrained(x: jax.Array, *axes: str) -> jax.Array:
    """Returns x, through the function of the surrounding :func:`constrain_activations` if there is one."""
    constrain = _constrain.get()
    return x if constrain is None else constrain(x, axes)


def in_use(weight: nnx.Param, dtype: Any = None) -> jax.Array:
    """Returns a weight's value as it enters the computation: cast, then as :func:`constrained`."""
    value = weight[...] if dtype is None else weight[...].astype(dtype)
    axes = weight.get_metadata("axes")
    return constrained(value, *axes[len(axes) - value.ndim :])
