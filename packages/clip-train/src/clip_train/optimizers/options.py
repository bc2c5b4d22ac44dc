"""What every optimizer has in its config, and what that means for each parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from clip_train.optimizers.names import map_named, matches, name_of, require_matches

# Of a tower, what is applied before its first block.
_BEFORE_BLOCKS = (
    "token_embedding",
    "patch_embedding",
    "position_embedding",
    "class_embedding",
    "registers",
    "embed_norm",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametersConfig:
    """What is different for some parameters; what is `None` stays as it is.

    Attributes:
        match: their names: a tower or a part (`"vision"`, `"text/blocks"`), or a glob (`"*/bias"`).
        learning_rate_scale: times the learning rate.
        weight_decay: instead of the optimizer's, for those that decay.
        decays: whether they decay at all; without it, matrices do.
        layer_decay: instead of the optimizer's.
        frozen: they stay as they are: no gradient is computed for them and no optimizer state kept.
    """

    match: str
    learning_rate_scale: float | None = None
    weight_decay: float | None = None
    decays: bool | None = None
    layer_decay: float | None = None
    frozen: bool | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        _check(self, at_least_zero=("weight_decay",), above_zero=("learning_rate_scale",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What every optimizer has.

    Attributes:
        learning_rate: the peak; by default 1e-3 from random weights and 1e-5 from pretrained ones, for Lion a tenth.
        weight_decay: decoupled, times the learning rate; on matrices only, unless `parameters` says otherwise.
        clip_norm: the gradient's global norm is cut to this; `None` leaves it.
        layer_decay: each layer of a tower learns this much slower than the one after it, the embeddings slowest; what
            comes after the layers learns at the full rate.
        parameters: what is different for some of them; where several match, the last one that says it counts.
        max_logit_scale: the multiplier of the similarities is kept at most this large, 100 in CLIP; `None` leaves it.
    """

    relative_rate: ClassVar[float] = 1.0

    learning_rate: float | None = None
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    layer_decay: float | None = None
    parameters: tuple[ParametersConfig, ...] = ()
    max_logit_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        _check(self, at_least_zero=("weight_decay",), above_zero=("learning_rate", "clip_norm", "max_logit_scale"))


def check_fractions(config: Any, *names: str) -> None:
    """Refuse decays of moving averages that are not in [0, 1)."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ValueError(f"{name} is in [0, 1); got {value}")


def _check(config: Any, *, at_least_zero: tuple[str, ...], above_zero: tuple[str, ...]) -> None:
    for name in at_least_zero:
        if (value := getattr(config, name)) is not None and value < 0:
            raise ValueError(f"{name} is ≥ 0; got {value}")
    for name in above_zero:
        if (value := getattr(config, name)) is not None and value <= 0:
            raise ValueError(f"{name} is above 0; got {value}")
    if config.layer_decay is not None and not 0 < config.layer_decay <= 1:
        raise ValueError(f"layer_decay is in (0, 1]; got {config.layer_decay}")


class ParameterOptions:
    """What an optimizer's config says of each parameter, by name.

    Raises:
        ValueError: a pattern matches none of the parameters, or all of them are frozen.
    """

    def __init__(self, config: OptimizerConfig, axes: Any | None) -> None:
        self._config = config
        self._axes = None if axes is None else _axes_by_name(axes)
        if self._axes is not None:
            require_matches((group.match for group in config.parameters), self._axes)
            if all(self.frozen(name) for name in self._axes):
                raise ValueError("parameters freezes everything; leave something to train")

    def frozen(self, name: str) -> bool:
        """Whether a parameter stays as it is."""
        return bool(self._find(name, "frozen", False))

    def trainable(self, tree: Any) -> Any:
        """Which parameters are trained, as a tree of bools."""
        return map_named(lambda name, _: not self.frozen(name), tree)

    def stacked(self, name: str) -> bool:
        """Whether the first axis of a parameter is one of layers."""
        return self._axes is not None and self._axes[name][:1] == ("layers",)

    def weight_decay(self, name: str, array: Any) -> float:
        """How much a parameter decays."""
        rank = array.ndim if self._axes is None else sum(axis != "layers" for axis in self._axes[name])
        decays = self._find(name, "decays", rank >= 2)
        return float(self._find(name, "weight_decay", self._config.weight_decay)) if decays else 0.0

    def learning_rate_scales(self, tree: Any) -> Any:
        """Each parameter's multiple of the learning rate: a number, or an array that broadcasts over layers."""
        depths = {
            name_of(path).split("/")[0]: leaf.shape[0]
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if self.stacked(name_of(path))
        }

        def scale(name: str, array: Any) -> Any:
            factor = float(self._find(name, "learning_rate_scale", 1.0))
            decay = self._find(name, "layer_decay", self._config.layer_decay)
            tower, _, rest = name.partition("/")
            if decay is None or decay == 1 or tower not in depths:
                return factor
            if self.stacked(name):
                below = np.arange(depths[tower], 0, -1, dtype=np.float32)
                return (factor * np.float32(decay) ** below).reshape(-1, *(1,) * (array.ndim - 1))
            return factor * decay ** (depths[tower] + 1) if rest.startswith(_BEFORE_BLOCKS) else factor

        return map_named(scale, tree)

    def hidden_matrix(self, name: str, array: Any) -> bool:
        """Whether a parameter is a matrix from hidden width to hidden width: no embedding, no head, no vector."""
        if self._axes is None:
            return array.ndim == 2
        names = [axis for axis in self._axes[name] if axis != "layers"]
        return len(names) == 2 and set(names) <= {"embed", "heads", "mlp"}

    def _find(self, name: str, field: str, default: Any) -> Any:
        said: Sequence[Any] = [
            value
            for group in self._config.parameters
            if matches(group.match, name) and (value := getattr(group, field)) is not None
        ]
        return said[-1] if said else default


def _axes_by_name(axes: Any) -> dict[str, tuple[str, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda node: isinstance(node, tuple))
    return {name_of(path): names for path, names in leaves}
