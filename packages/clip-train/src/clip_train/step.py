"""One update, jitted and donated: `state, batch -> state, metrics`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from clip_train.accumulate import accumulated_value_and_grad
from clip_train.objective import ContrastiveObjective, LossFn, Metrics
from clip_train.state import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    num_microbatches: int = 1,
    learning_rate: optax.Schedule | None = None,
    abstract: TrainState | None = None,
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

    Returns:
        A function that consumes its state (the buffers are donated) and returns the next one with the metrics of the
        update: `loss`, `grad_norm`, `learning_rate` and what `loss_fn` adds, all scalars.

    Raises:
        ValueError: several microbatches of a loss that is not in two halves.
    """
    if num_microbatches == 1:
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    elif isinstance(loss_fn, ContrastiveObjective):
        value_and_grad = functools.partial(accumulated_value_and_grad, loss_fn, num_microbatches)
    else:
        raise ValueError(
            f"accumulation needs the two halves of a ContrastiveObjective; got {type(loss_fn).__name__} "
            f"with num_microbatches={num_microbatches}"
        )

    where = None if abstract is None else (jax.tree.map(lambda leaf: leaf.sharding, abstract), None)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), grads = value_and_grad(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(state.step)
        params = optax.apply_updates(state.params, updates)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step
