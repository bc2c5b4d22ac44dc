"""Distributed Shampoo: each block of a gradient is preconditioned along each of its dims; devices share out the roots.

References:
    Gupta et al., Shampoo: Preconditioned Stochastic Tensor Optimization, arXiv 1802.09568.
    Anil et al., Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_train.optimizers.blocks import Layout, layout
from clip_train.optimizers.graft import Graft, graft_updates, grafted, has_accumulator
from clip_train.optimizers.inverse_root import RootMethod, inverse_roots
from clip_train.optimizers.names import map_named, name_of
from clip_train.optimizers.preconditioner import Blocks, add_moments, first_blocks, precondition, take_roots
from clip_train.optimizers.spread import Spread


class ShampooState(NamedTuple):
    """Shampoo's state.

    Attributes:
        count: updates made, int32 [].
        accumulator: of the grafted optimizer, like the parameters; `None` where it keeps none.
        graft_momentum: of the grafted optimizer's updates, like the parameters: it leads until Shampoo takes over.
        momentum: of Shampoo's updates, like the parameters.
        blocks: by shape.
    """

    count: jax.Array
    accumulator: Any
    graft_momentum: Any
    momentum: Any
    blocks: dict[str, Blocks]


def distributed_shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    block_size: int | Mapping[str, int] = 512,
    beta1: float = 0.9,
    beta2: float = 0.95,
    nesterov: bool = True,
    graft: Graft = "rmsprop_normalized",
    start_preconditioning_step: int = 25,
    preconditioning_compute_steps: int = 20,
    moving_average_for_momentum: bool = True,
    matrix_epsilon: float = 1e-6,
    diagonal_epsilon: float = 1e-10,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
    mask: Any | Callable[[Any], Any] | None = None,
    skip_preconditioning_dim_above: int = 4096,
    skip_preconditioning_rank_below: int = 1,
    failure_threshold: float = 0.1,
    root_method: RootMethod = "newton",
    is_stacked: Callable[[str], bool] = lambda name: False,
    mesh: Mesh | None = None,
    shard_over: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Distributed Shampoo, as published, with stacked layers preconditioned one by one.

    Args:
        learning_rate: a number or a schedule.
        block_size: the longest side of a block; or one for each tower, by the first key of the tree of parameters.
        beta1: decay of the momenta.
        beta2: decay of the statistics and of the grafted optimizer's; at 1 they are summed up.
        nesterov: look ahead along the momentum.
        graft: the optimizer that gives each layer's update its size.
        start_preconditioning_step: the first update that is Shampoo's; those before are the grafted optimizer's.
        preconditioning_compute_steps: roots are taken at every multiple of this many updates.
        moving_average_for_momentum: weigh what enters the momenta by 1 − `beta1`.
        matrix_epsilon: ridge of the roots, relative to the largest eigenvalue.
        diagonal_epsilon: added to the root of the grafted optimizer's accumulator.
        weight_decay: times the parameter; times the learning rate.
        decoupled_weight_decay: past the momenta, or through them.
        mask: what decays, as `optax.add_decayed_weights` takes it.
        skip_preconditioning_dim_above: parameters with a longer dim follow the grafted optimizer.
        skip_preconditioning_rank_below: and those with fewer dims, not counting that of layers.
        failure_threshold: a root with a larger error is not used; the last good one stays.
        root_method: of `inverse_roots`.
        is_stacked: whether the first axis of the parameter of this name is one of layers.
        mesh: whose devices share out blocks and roots.
        shard_over: the mesh axes that do; none, and every device has all.

    Returns:
        A transformation of gradients into updates; it needs the parameters to be given.

    Raises:
        ValueError: a `block_size` by tower leaves a tower out.
    """
    decay: optax.GradientTransformation = (
        optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    )
    direction = scale_by_shampoo(
        block_size=block_size,
        beta1=beta1,
        beta2=beta2,
        nesterov=nesterov,
        graft=graft,
        start_preconditioning_step=start_preconditioning_step,
        preconditioning_compute_steps=preconditioning_compute_steps,
        moving_average_for_momentum=moving_average_for_momentum,
        matrix_epsilon=matrix_epsilon,
        diagonal_epsilon=diagonal_epsilon,
        coupled=optax.identity() if decoupled_weight_decay else decay,
        skip_preconditioning_dim_above=skip_preconditioning_dim_above,
        skip_preconditioning_rank_below=skip_preconditioning_rank_below,
        failure_threshold=failure_threshold,
        root_method=root_method,
        is_stacked=is_stacked,
        mesh=mesh,
        shard_over=shard_over,
    )
    after = decay if decoupled_weight_decay else optax.identity()
    return optax.chain(direction, after, optax.scale_by_learning_rate(learning_rate))


def scale_by_shampoo(
    *,
    block_size: int | Mapping[str, int],
    beta1: float,
    beta2: float,
    nesterov: bool,
    graft: Graft,
    start_preconditioning_step: int,
    preconditioning_compute_steps: int,
    moving_average_for_momentum: bool,
    matrix_epsilon: float,
    diagonal_epsilon: float,
    coupled: optax.GradientTransformation,
    skip_preconditioning_dim_above: int,
    skip_preconditioning_rank_below: int,
    failure_threshold: float,
    root_method: RootMethod,
    is_stacked: Callable[[str], bool],
    mesh: Mesh | None,
    shard_over: tuple[str, ...],
) -> optax.GradientTransformation:
    """`distributed_shampoo` without learning rate and decoupled decay.

    Args: as there, and

        coupled: stateless; what is added to updates before they enter the momenta.
    """
    spread = Spread(mesh, shard_over)

    def blocks_of(params: Any) -> Layout:
        return layout(
            params,
            block_size=lambda name: _block_size(block_size, name),
            is_stacked=is_stacked,
            skips=lambda shape: (
                len(shape) < skip_preconditioning_rank_below or max(shape, default=0) > skip_preconditioning_dim_above
            ),
        )

    def init(params: Any) -> ShampooState:
        cut = blocks_of(params)
        blocks = {}
        for key, pieces in cut.groups.items():
            num = cut.num_blocks(key)
            blocks[key] = first_blocks(pieces[0].shape, num, fill=-num % spread.num, epsilon=matrix_epsilon)
        return ShampooState(
            count=jnp.zeros((), jnp.int32),
            accumulator=optax.tree.zeros_like(params) if has_accumulator(graft) else None,
            graft_momentum=optax.tree.zeros_like(params),
            momentum=optax.tree.zeros_like(params),
            blocks=blocks,
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShampooState]:
        grads = updates
        cut = blocks_of(grads)
        stacked = map_named(lambda name, _: is_stacked(name), grads)

        cut_grads = spread.hold(cut.cut(_by_name(grads), multiple_of=spread.num))
        statistics = {key: add_moments(state.blocks[key].statistics, cut_grads[key], beta2) for key in cut.groups}
        new_roots = functools.partial(
            take_roots,
            num_blocks=cut.num_blocks,
            spread=spread,
            root=functools.partial(inverse_roots, epsilon=matrix_epsilon, method=root_method),
            failure_threshold=failure_threshold,
        )
        old_roots = {key: state.blocks[key].roots for key in cut.groups}
        if preconditioning_compute_steps == 1:
            roots = new_roots(statistics, old_roots)
        else:
            due = state.count % preconditioning_compute_steps == 0
            roots = jax.lax.cond(due, lambda new, old: new_roots(new, old), lambda _, old: old, statistics, old_roots)
        directions = cut.join({key: precondition(cut_grads[key], roots[key]) for key in cut.groups})

        grafts, accumulator = graft_updates(
            graft, grads, state.accumulator, stacked, beta2=beta2, epsilon=diagonal_epsilon
        )
        shampoos = map_named(
            lambda name, size, layers: grafted(directions[name], size, stacked=layers) if name in cut.names else size,
            grafts,
            stacked,
        )
        shampoos, _ = coupled.update(shampoos, coupled.init(params), params)
        grafts, _ = coupled.update(grafts, coupled.init(params), params)

        weight = 1 - beta1 if moving_average_for_momentum else 1.0
        momentum, graft_momentum = (
            jax.tree.map(lambda old, new: beta1 * old + weight * new, olds, news)
            for olds, news in ((state.momentum, shampoos), (state.graft_momentum, grafts))
        )
        leads = state.count >= start_preconditioning_step
        updates = jax.tree.map(lambda ours, theirs: jnp.where(leads, ours, theirs), momentum, graft_momentum)
        if nesterov:
            newest = jax.tree.map(lambda ours, theirs: jnp.where(leads, ours, theirs), shampoos, grafts)
            updates = jax.tree.map(lambda new, mean: weight * new + beta1 * mean, newest, updates)
        blocks = {key: Blocks(spread.hold(statistics[key]), spread.hold(roots[key])) for key in cut.groups}
        return updates, ShampooState(state.count + 1, accumulator, graft_momentum, momentum, blocks)

    return optax.GradientTransformation(init, update)


def _block_size(given: int | Mapping[str, int], name: str) -> int:
    if not isinstance(given, Mapping):
        return given
    tower = name.split("/")[0]
    if tower not in given:
        raise ValueError(f"block_size by tower has one for each; got {dict(given)}, and none for {tower!r}")
    return given[tower]


def _by_name(tree: Any) -> dict[str, jax.Array]:
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
