"""Updates that would do harm are not made: a guard around an optimizer, inside the jitted step."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

OK, NOT_FINITE, SPIKE = 0, 1, 2

_DECAY = 0.99
_SETTLED = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is done about a loss, a gradient or an update that is not finite, and about a loss that jumps.

    Attributes:
        not_finite: `stop` the run, or `skip` the update and go on with the next batch. Parameters and optimizer never
            see such numbers.
        spike: the same for a jump; or `warn` of it and make the update; or `ignore` it.
        spike_factor: a loss above this multiple of its running mean of about 100 steps is a jump.
    """

    not_finite: Literal["stop", "skip"] = "stop"
    spike: Literal["warn", "stop", "skip", "ignore"] = "warn"
    spike_factor: float = 5.0

    def __post_init__(self) -> None:
        """Refuse factors that everyday noise would pass."""
        if self.spike_factor <= 1:
            raise ValueError(f"spike_factor is above 1; got {self.spike_factor}")

    def action(self, verdict: int) -> str:
        """What is done about `NOT_FINITE` or `SPIKE`."""
        return self.not_finite if verdict == NOT_FINITE else self.spike


class GuardState(NamedTuple):
    """The optimizer's state, and what a jump is measured by.

    Args:
        inner: the optimizer's.
        mean_loss: float32 [], of the losses that were no jumps.
        num_steps: int32 [], that went into it.
        verdict: int32 [], of the newest step: `OK`, `NOT_FINITE` or `SPIKE`.
    """

    inner: Any
    mean_loss: jax.Array
    num_steps: jax.Array
    verdict: jax.Array


def guard(tx: optax.GradientTransformation, config: GuardConfig) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer: a bad step leaves parameters and state as they are, but for the schedule, which goes on.

    Args:
        tx: the optimizer.
        config: what is bad.

    Returns:
        A transformation whose `update` needs `value`, the loss. Its state is a `GuardState`.
    """
    tx = optax.with_extra_args_support(tx)
    skips_spikes = config.spike in ("stop", "skip")

    def init(params: Any) -> GuardState:
        return GuardState(tx.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, value: jax.Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        new_updates, inner = tx.update(updates, state.inner, params, value=value, **extra)
        finite = jnp.isfinite(value)
        for tree in (updates, new_updates):
            finite &= jnp.isfinite(optax.tree.norm(tree))
        jumps = (state.num_steps >= _SETTLED) & (value > config.spike_factor * state.mean_loss)
        if config.spike == "ignore":
            jumps = jnp.zeros((), bool)
        made = finite & ~jumps if skips_spikes else finite
        verdict = jnp.where(finite, jnp.where(jumps, SPIKE, OK), NOT_FINITE).astype(jnp.int32)
        usual = finite & ~jumps
        # The first losses weigh alike: the mean is right from the start.
        rate = 1 - jnp.minimum(_DECAY, state.num_steps / (state.num_steps + 1))
        guarded = GuardState(
            inner=_choose_state(made, inner, state.inner),
            mean_loss=jnp.where(usual, state.mean_loss + rate * (value - state.mean_loss), state.mean_loss),
            num_steps=state.num_steps + usual,
            verdict=verdict,
        )
        return _choose(made, new_updates, jax.tree.map(jnp.zeros_like, new_updates)), guarded

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _choose_state(condition: jax.Array, new: Any, old: Any) -> Any:
    """The same of an optimizer's states; the count of a schedule is that of the run's steps, and goes on with them."""
    return jax.tree.map(
        lambda a, b: a if isinstance(a, optax.ScaleByScheduleState) else jnp.where(condition, a, b),
        new,
        old,
        is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState),
    )
