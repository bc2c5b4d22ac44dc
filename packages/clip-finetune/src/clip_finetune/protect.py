"""What keeps a model near what it knew while it learns pairs: low-rank updates, or a pull to its first weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_finetune.lora import lora_axes, lora_init, lora_merge
from clip_models import init, logical_axes
from clip_sharding import shardings
from clip_train import ContrastiveObjective, TrainState, make_optimizer
from clip_train.guard import guard
from clip_train.optimizers import ParameterOptions, ParametersConfig
from clip_train.setup import Setup
from clip_train.state import abstract_state, select

TOWERS = ("vision", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectConfig:
    """How forgetting is kept small.

    Attributes:
        kind: `none`; `wise-ft`: the point `alpha` of the way from the first to the tuned weights; `lora`: the towers
            stay as they are, and low-rank updates are learned for them; `l2`: what is trained is pulled to its first
            weights, in place of the weight decay to zero.
        alpha: how far from the first to the tuned weights `wise-ft` goes, in [0, 1]; the paper's default. It is not
            chosen by the evaluations, which therefore judge it fairly.
        alphas: where `wise-ft` measures its curve over the evaluations, each in [0, 1].
        lora_rank: of the updates.
        lora_alpha: they are scaled by this over the rank.
        l2: how strong the pull is: l2 / 2 · ‖θ − θ₀‖² beside the loss.
    """

    kind: Literal["none", "wise-ft", "lora", "l2"] = "none"
    alpha: float = 0.5
    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    lora_rank: int = 8
    lora_alpha: float = 16.0
    l2: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas lists at least one number, each in [0, 1]; got {list(self.alphas)}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is in [0, 1]; got {self.alpha}")
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank is at least 1; got {self.lora_rank}")
        for name in ("lora_alpha", "l2"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is above 0; got {getattr(self, name)}")


def protected(setup: Setup, config: ProtectConfig) -> Setup:
    """A run that keeps near its start as it trains; for `none` and `wise-ft`, which looks back at the end, the same.

    Args:
        setup: of the run.
        config: how.

    Raises:
        ValueError: there is no whole tower for low-rank updates.
    """
    if config.kind == "lora":
        return _with_lora(setup, config)
    if config.kind == "l2":
        return _with_pull(setup, config.l2)
    return setup


class PullState(NamedTuple):
    """The first weights of what is trained."""

    start: Any


def pull_to_start(strength: float, trainable: Any = None) -> optax.GradientTransformation:
    """Adds the gradient of strength / 2 · ‖θ − θ₀‖², where θ₀ are the parameters at `init`.

    Args:
        strength: of the pull.
        trainable: which parameters are trained, as a tree of bools; `None`: all.

    References:
        Li et al., Explicit Inductive Bias for Transfer Learning, arXiv 1802.01483: L2-SP.
    """

    def first(params: Any) -> PullState:
        trained = params if trainable is None else select(params, trainable)
        return PullState(jax.tree.map(jnp.copy, trained))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        pulled = jax.tree.map(lambda u, now, then: u + strength * (now - then), updates, params, state.start)
        return pulled, state

    return optax.GradientTransformation(first, update)


def _with_pull(setup: Setup, strength: float) -> Setup:
    optimizer = dataclasses.replace(setup.config.optimizer, weight_decay=0.0)
    axes = logical_axes(setup.model)
    tx = optax.chain(
        pull_to_start(strength, setup.trainable),
        make_optimizer(optimizer, setup.learning_rate, axes=axes, mesh=setup.mesh),
    )
    make = functools.partial(init, setup.model, jax.random.key(setup.config.seed))
    return _with_optimizer(setup, tx, make, axes, setup.trainable)


@dataclasses.dataclass(frozen=True)
class LoraSetup(Setup):
    """A run whose parameters are the model's and, under `lora`, low-rank updates to its towers.

    Attributes:
        lora_alpha: of the updates.
    """

    lora_alpha: float

    def merged(self, params: Any) -> Any:
        """The model's parameters, the updates added."""
        towers = {
            name: lora_merge(params[name], updates, alpha=self.lora_alpha) for name, updates in params["lora"].items()
        }
        return {**{name: value for name, value in params.items() if name != "lora"}, **towers}

    def objective(self) -> ContrastiveObjective:
        """What is minimised."""
        of_model = super().objective()
        return ContrastiveObjective(
            encode=lambda params, batch, key: of_model.encode(self.merged(params), batch, key),
            loss=lambda embeds, params: of_model.loss(embeds, params),
        )

    def evaluated(self, state: TrainState) -> Any:
        """The parameters that are evaluated."""
        return self.merged(super().evaluated(state))


def _with_lora(setup: Setup, config: ProtectConfig) -> Setup:
    optimizer = setup.config.optimizer
    axes: dict[str, Any] = dict(logical_axes(setup.model))
    locked = ParameterOptions(optimizer, axes).frozen
    towers = [name for name in TOWERS if name in axes and not locked(f"{name}/blocks/mlp/fc1/kernel")]
    if not towers:
        raise ValueError("low-rank updates are for towers, and lock holds both; leave one free, or protect otherwise")
    seed = jax.random.key(setup.config.seed)

    def updates(params: Any) -> dict[str, Any]:
        keys = jax.random.split(seed, len(towers))
        return {
            name: lora_init(params[name], key, rank=config.lora_rank) for name, key in zip(towers, keys, strict=True)
        }

    def make() -> dict[str, Any]:
        params = init(setup.model, seed)
        return {**params, "lora": updates(params)}

    shapes = jax.eval_shape(make)
    axes["lora"] = {tower: lora_axes(found) for tower, found in shapes["lora"].items()}
    frozen = [ParametersConfig(match=name, frozen=True) for name in (*TOWERS, "decoder") if name in axes]
    optimizer = dataclasses.replace(optimizer, layer_decay=None, parameters=(*optimizer.parameters, *frozen))
    tx = make_optimizer(optimizer, setup.learning_rate, axes=axes, mesh=setup.mesh)
    trainable = ParameterOptions(optimizer, axes).trainable(shapes)

    def load(placements: Any) -> Any:
        of_model = {name: value for name, value in placements.items() if name != "lora"}
        params = setup.origin.load(of_model) if setup.origin.load else init(setup.model, seed)
        return {**params, "lora": jax.device_put(updates(params), placements["lora"])}

    setup = _with_optimizer(setup, tx, make, axes, trainable)
    origin = dataclasses.replace(setup.origin, load=load)
    return LoraSetup(**{**vars(setup), "origin": origin}, lora_alpha=config.lora_alpha)


def _with_optimizer(
    setup: Setup, tx: optax.GradientTransformation, make: Any, axes: dict[str, Any], trainable: Any
) -> Setup:
    config = setup.config
    guarded = guard(tx, config.guard)
    placed = shardings(setup.rules, setup.mesh, axes, jax.eval_shape(make))
    everything = jax.tree.map(lambda _: True, placed) if trainable is None else trainable
    abstract = abstract_state(
        make,
        guarded,
        placed,
        setup.mesh,
        averaged=None if config.ema is None else everything,
        block_axes=getattr(config.optimizer, "shard_over", ()),
    )
    return dataclasses.replace(setup, tx=guarded, abstract=abstract, trainable=trainable)
