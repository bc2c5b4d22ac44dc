"""What training changes: step, parameters, optimizer state; created where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes.

    Attributes:
        step: updates made so far, int32 [].
        params: a tree of arrays.
        opt_state: the optimizer's own tree.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_state(
    init: Callable[[], Any], tx: optax.GradientTransformation, param_shardings: Any, mesh: Mesh
) -> TrainState:
    """The shapes, dtypes and shardings of a state, without a byte of it: what `create_state` makes and a restore fills.

    Args:
        init: makes the parameters.
        tx: the optimizer; each of its arrays that is shaped like a parameter is placed like that parameter.
        param_shardings: a tree of `NamedSharding` like the parameters'.
        mesh: where the rest goes, on every device.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(_placed, jax.eval_shape(init), param_shardings)
    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda shape, sharding: _placed(shape, sharding),
        jax.eval_shape(tx.init, params),
        param_shardings,
        transform_non_params=lambda shape: _placed(shape, replicated),
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step=step, params=params, opt_state=opt_state)


def create_state(init: Callable[[], Any], tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """Make the first state, each array directly in its sharding."""

    def create() -> TrainState:
        params = init()
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))

    return jax.jit(create, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def state_from_params(params: Any, tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """A first state around parameters that came from elsewhere.

    Raises:
        ValueError: the parameters are not shaped as the state expects.
    """
    wrong = [
        f"{jax.tree_util.keystr(path)}: expected {want.shape}, got {got.shape}"
        for (path, want), got in zip(
            jax.tree_util.tree_leaves_with_path(abstract.params), jax.tree.leaves(params), strict=True
        )
        if want.shape != got.shape
    ]
    if wrong:
        raise ValueError("the weights do not fit the model: " + "; ".join(wrong))
    placed = jax.tree.map(lambda got, want: jax.device_put(got, want.sharding), params, abstract.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    opt_state = jax.jit(tx.init, out_shardings=shardings)(placed)
    step = jax.make_array_from_callback((), abstract.step.sharding, lambda _: np.zeros((), np.int32))
    return TrainState(step=step, params=placed, opt_state=opt_state)


def _placed(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
