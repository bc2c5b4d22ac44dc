"""Grafting: the size of Shampoo's update is that of a simpler optimizer's, layer by layer; its direction is Shampoo's.

References:
    Agarwal et al., Disentangling Adaptive Gradient Methods from Learning Rates, arXiv 2002.11803.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

Graft = Literal["sgd", "sqrt_n", "adagrad", "adagrad_normalized", "rmsprop", "rmsprop_normalized"]

_TINY = 1e-25


def has_accumulator(graft: Graft) -> bool:
    """Whether the grafted optimizer keeps a sum of squares for each parameter."""
    return graft not in ("sgd", "sqrt_n")


def layer_norm(array: jax.Array, stacked: bool) -> jax.Array:
    """The norm of an array, or of each of its layers: `[layers, 1, …]`, or `[1, …]`."""
    axes = tuple(range(int(stacked), array.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(array), axis=axes, keepdims=True))


def graft_update(
    graft: Graft, grad: jax.Array, accumulator: jax.Array | None, *, beta2: float, epsilon: float, stacked: bool
) -> tuple[jax.Array, jax.Array | None]:
    """The update of the grafted optimizer.

    Args:
        graft: which; in the normalised forms each layer's gradient has norm 1 first.
        grad: float32, any dims.
        accumulator: of squared gradients, like `grad`, where `has_accumulator`.
        beta2: decay of a moving average of squares; at 1 they are summed up.
        epsilon: added to the root of the accumulator.
        stacked: whether the first axis is of layers.

    Returns:
        The update, before the learning rate, and the next accumulator.
    """
    if accumulator is None:
        return (grad if graft == "sgd" else jnp.sign(grad)), None
    if graft.endswith("_normalized"):
        grad = grad / (layer_norm(grad, stacked) + _TINY)
    if graft.startswith("rmsprop") and beta2 < 1:
        accumulator = beta2 * accumulator + (1 - beta2) * jnp.square(grad)
    else:
        accumulator = accumulator + jnp.square(grad)
    return grad / (jnp.sqrt(accumulator) + epsilon), accumulator


def graft_updates(
    graft: Graft, grads: Any, accumulator: Any, stacked: Any, *, beta2: float, epsilon: float
) -> tuple[Any, Any]:
    """The same of a tree; `accumulator` is one, or `None`, and `stacked` one of bools."""
    flat, structure = jax.tree.flatten(grads)
    sums = [None] * len(flat) if accumulator is None else structure.flatten_up_to(accumulator)
    pairs = [
        graft_update(graft, grad, total, beta2=beta2, epsilon=epsilon, stacked=layers)
        for grad, total, layers in zip(flat, sums, structure.flatten_up_to(stacked), strict=True)
    ]
    updates = structure.unflatten([update for update, _ in pairs])
    return updates, None if accumulator is None else structure.unflatten([total for _, total in pairs])


def grafted(direction: jax.Array, size: jax.Array, *, stacked: bool) -> jax.Array:
    """Each layer of `direction`, as long as that of `size`."""
    return direction * (layer_norm(size, stacked) / (layer_norm(direction, stacked) + _TINY))
