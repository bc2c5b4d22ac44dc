"""Train image–text models from one config.

The names are loaded when they are first used: `clip-train --help` passes through here and must not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_train.checkpoint import Checkpoints
    from clip_train.config import TrainConfig
    from clip_train.evaluate import retrieval, zero_shot
    from clip_train.loop import fit
    from clip_train.objective import ContrastiveObjective, LossFn
    from clip_train.optimizers import make_optimizer
    from clip_train.state import TrainState
    from clip_train.step import make_step
    from clip_train.weights import load_run

__all__ = [
    "Checkpoints",
    "ContrastiveObjective",
    "LossFn",
    "TrainConfig",
    "TrainState",
    "fit",
    "load_run",
    "make_optimizer",
    "make_step",
    "retrieval",
    "zero_shot",
]

_HOMES = {
    "Checkpoints": "checkpoint",
    "ContrastiveObjective": "objective",
    "LossFn": "objective",
    "TrainConfig": "config",
    "TrainState": "state",
    "fit": "loop",
    "load_run": "weights",
    "make_optimizer": "optimizers",
    "make_step": "step",
    "retrieval": "evaluate",
    "zero_shot": "evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
