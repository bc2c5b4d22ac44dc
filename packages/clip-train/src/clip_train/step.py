"""One update, jitted and donated: `state, batch -> state, metrics`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_train.accumulate import accumulated_value_and_grad
from clip_train.guard import GuardState
from clip_train.objective import ContrastiveObjective, LossFn, Metrics
from clip_train.state import TrainState, merge, select

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    num_microbatches: int = 1,
    learning_rate: optax.Schedule | None = None,
    abstract: TrainState | None = None,
    trainable: Any = None,
    ema_decay: float | None = None,
) -> Step:
    """Build the update.

    Args:
        loss_fn: what is minimised; a `ContrastiveObjective` if there are several microbatches.
        tx: the optimizer.
        seed: of dropout and the like; the key of step n is a pure function of seed and n.
        num_microbatches: above 1, activations are those of one microbatch; the gradient stays the same.
        learning_rate: only to report it among the metrics.
        abstract: the state's shapes and shardings; each array stays in its own. Without it the compiler may move what
            it finds better elsewhere, and the second update compiles again.
        trainable: which parameters are trained, as a tree of bools; no gradient is computed for the others. By default
            all are.
        ema_decay: of the moving averages in the state; the first ones weigh less, as min(decay, (1 + n) / (10 + n)).

    Returns:
        A function that consumes its state (the buffers are donated) and returns the next one with the metrics of the
        update, all scalars: `loss`, what `loss_fn` adds, `learning_rate`, and the Euclidean norms `grad_norm`,
        `update_norm` and `param_norm`, each also of every part of the parameters, as `grad_norm/vision`. Of a guarded
        optimizer there is `verdict`.

    Raises:
        ValueError: several microbatches of a loss that is not in two halves.
    """
    if num_microbatches > 1 and not isinstance(loss_fn, ContrastiveObjective):
        raise ValueError(
            f"accumulation needs the two halves of a ContrastiveObjective; got {type(loss_fn).__name__} "
            f"with num_microbatches={num_microbatches}"
        )

    tx = optax.with_extra_args_support(tx)
    where = None if abstract is None else (jax.tree.map(lambda leaf: leaf.sharding, abstract), None)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        mask = jax.tree.map(lambda _: True, state.params) if trainable is None else trainable
        trained = select(state.params, mask)
        loss_of = loss_fn if trainable is None else _given(loss_fn, state.params)
        if isinstance(loss_of, ContrastiveObjective) and num_microbatches > 1:
            (loss, metrics), grads = accumulated_value_and_grad(loss_of, num_microbatches, trained, batch, key)
        else:
            (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, trained, value=loss)
        metrics = {"loss": loss, **norms("grad_norm", grads), **metrics}
        metrics |= {**norms("update_norm", updates), **norms("param_norm", state.params)}
        if isinstance(opt_state, GuardState):
            metrics["verdict"] = opt_state.verdict
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(state.step)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, ema, trained)
        params = merge(trained, state.params)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return step


def norms(name: str, tree: Any) -> Metrics:
    """The Euclidean norm of a tree, and of each part of it: the keys of its top level.

    Args:
        name: of the metric.
        tree: of arrays.

    Returns:
        `name`, and `name/part` where there are several parts.
    """
    parts = tree if isinstance(tree, dict) else {}
    squares = {part: optax.tree.norm(leaves, squared=True) for part, leaves in parts.items()}
    if not squares:
        return {name: optax.tree.norm(tree)}
    whole = {name: jnp.sqrt(sum(squares.values(), jnp.zeros(())))}
    return whole | {f"{name}/{part}": jnp.sqrt(square) for part, square in squares.items() if len(squares) > 1}


def _given(loss_fn: LossFn, params: Any) -> LossFn:
    """A loss of the parameters that are trained, given all of them: its others are constants to it."""
    if not isinstance(loss_fn, ContrastiveObjective):
        return lambda trained, batch, key: loss_fn(merge(trained, params), batch, key)
    return dataclasses.replace(
        loss_fn,
        encode=lambda trained, batch, key: loss_fn.encode(merge(trained, params), batch, key),
        loss=lambda embeds, trained: loss_fn.loss(embeds, merge(trained, params)),
    )
