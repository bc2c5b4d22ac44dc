"""What training changes: step, parameters, optimizer state, averages; created where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_train.optimizers.names import name_of
from clip_train.optimizers.preconditioner import Blocks

# Bytes of parameters that are drawn by one program: of fewer, what that takes besides is less than another compilation.
_DRAWN_AT_ONCE = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving averages of the parameters, over updates.

    Attributes:
        decay: of the averages; those of the first updates follow faster.
        evaluate: evaluations and `clip-train export` take the averages and not the parameters.
    """

    decay: float = 0.9999
    evaluate: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no decay."""
        if not 0 < self.decay < 1:
            raise ValueError(f"decay is between 0 and 1, such as 0.9999; got {self.decay}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes.

    Attributes:
        step: updates made so far, int32 [].
        params: a tree of arrays.
        opt_state: the optimizer's own tree.
        ema: moving averages of the parameters that are trained, the others `None`; or `None` where none are kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None

    def averaged(self) -> Any:
        """The parameters, each as its moving average where one is kept."""
        return self.params if self.ema is None else merge(self.ema, self.params)


def select(tree: Any, mask: Any) -> Any:
    """The leaves of a tree where a mask of it is true; `None` elsewhere."""
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)


def merge(tree: Any, rest: Any) -> Any:
    """The leaves of a tree, and those of another one where it has `None`."""
    return jax.tree.map(lambda ours, theirs: theirs if ours is None else ours, tree, rest, is_leaf=lambda x: x is None)


def abstract_state(
    init: Callable[[], Any],
    tx: optax.GradientTransformation,
    param_shardings: Any,
    mesh: Mesh,
    *,
    averaged: Any = None,
    block_axes: tuple[str, ...] = (),
) -> TrainState:
    """The shapes, dtypes and shardings of a state, without a byte of it: what `create_state` makes and a restore fills.

    Args:
        init: makes the parameters.
        tx: the optimizer; each of its arrays that belongs to a parameter and has its shape is placed like it.
        param_shardings: a tree of `NamedSharding` like the parameters'.
        mesh: where the rest goes, on every device.
        averaged: which parameters a moving average is kept of, as a tree of bools; `None`, of none.
        block_axes: the mesh axes over which Shampoo's blocks are divided.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(_placed, jax.eval_shape(init), param_shardings)
    of_name = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, Blocks):
            blocks = NamedSharding(mesh, PartitionSpec(block_axes))
            return jax.tree.map(lambda array: _placed(array, blocks), leaf)
        # The path of an array that belongs to a parameter ends in the parameter's.
        owner = next((of_name[name] for i in range(len(path)) if (name := name_of(path[i:])) in of_name), None)
        return _placed(leaf, owner.sharding if owner is not None and owner.shape == leaf.shape else replicated)

    opt_state = jax.tree_util.tree_map_with_path(
        place, jax.eval_shape(tx.init, params), is_leaf=lambda node: isinstance(node, Blocks)
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    ema = None if averaged is None else select(params, averaged)
    return TrainState(step=step, params=params, opt_state=opt_state, ema=ema)


def create_state(init: Callable[[], Any], tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """Make the first state, each array directly in its sharding; of a large model with little memory besides."""
    return _around(create_params(init, abstract.params), tx, abstract)


def create_params(init: Callable[[], Any], abstract: Any) -> Any:
    """Draw parameters where they live.

    Drawing takes memory besides, on CPUs several times that of an array that is no stack of layers. A large model's are
    therefore drawn in parts, the largest first: what one part takes besides is free again when the last are there.

    Args:
        init: makes them all.
        abstract: their shapes and shardings.
    """
    leaves, structure = jax.tree.flatten(abstract)
    made: dict[int, jax.Array] = {}
    for part in _parts([leaf.size * leaf.dtype.itemsize for leaf in leaves]):

        def draw(part: tuple[int, ...] = part) -> list[jax.Array]:
            drawn = jax.tree.leaves(init())
            return [drawn[i] for i in part]

        arrays = jax.jit(draw, out_shardings=[leaves[i].sharding for i in part])()
        made |= zip(part, jax.block_until_ready(arrays), strict=True)
    return structure.unflatten([made[i] for i in range(len(leaves))])


def _parts(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Which arrays are drawn together, by their bytes.

    With what is there already, twice the bytes of a part stay below 1.2 times those of all.
    """
    whole = remaining = sum(sizes)
    if whole < _DRAWN_AT_ONCE:
        return [tuple(range(len(sizes)))]
    parts: list[tuple[int, ...]] = []
    waiting = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    while waiting:
        part = [waiting.pop(0)]
        size = sizes[part[0]]
        while waiting and 2 * (size + sizes[waiting[0]]) <= remaining + 0.2 * whole:
            size += sizes[waiting[0]]
            part.append(waiting.pop(0))
        parts.append(tuple(part))
        remaining -= size
    return parts


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
    return _around(placed, tx, abstract)


def _around(placed: Any, tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The first state of parameters that are where they belong."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    opt_state = jax.jit(tx.init, out_shardings=shardings)(placed)
    step = jax.make_array_from_callback((), abstract.step.sharding, lambda _: np.zeros((), np.int32))
    # The step consumes its state: an average that shares its buffers with the parameters would go with them.
    ema = None if abstract.ema is None else _copy(select(placed, averaged_of(abstract)))
    return TrainState(step=step, params=placed, opt_state=opt_state, ema=ema)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def averaged_of(abstract: TrainState) -> Any:
    """Which parameters a state keeps moving averages of, as a tree of bools; `None` where it keeps none."""
    if abstract.ema is None:
        return None
    return jax.tree.map(lambda leaf: leaf is not None, abstract.ema, is_leaf=lambda leaf: leaf is None)


def _placed(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
