"""What a checkpoint says of itself, by which it is known again: step, position in the data, arrays' fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from clip_models.fingerprint import fingerprints
from clip_train.optimizers.preconditioner import Blocks
from clip_train.state import TrainState

_ITEMS = ("params", "opt_state", "ema")


def seal(step: int, cursor: dict[str, Any], state: TrainState) -> dict[str, Any]:
    """What is saved beside a state, as JSON values.

    Args:
        step: updates made.
        cursor: the position in the data, as JSON values.
        state: all of it.
    """
    sealed: dict[str, Any] = {"step": step, "cursor": cursor}
    for name in _ITEMS:
        if (tree := getattr(state, name)) is not None:
            sealed[name] = fingerprints(tree)
    sealed["shapes"] = [list(leaf.shape) for leaf in jax.tree.leaves(state.opt_state)]
    return {**sealed, "digest": _digest(sealed)}


def check_seal(step: int, restored: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint is what was saved, and of this step.

    Args:
        step: that it is in the place of.
        restored: its `progress`, and those of `params`, `opt_state` and `ema` that were read.

    Raises:
        ValueError: it is not; the message says what differs.
    """
    sealed = dict(restored["progress"])
    if sealed.pop("digest", None) != _digest(sealed):
        raise ValueError("its step, position in the data or fingerprints have changed")
    if sealed["step"] != step:
        raise ValueError(f"it is that of step {sealed['step']}")
    if restored.get("opt_state") is not None:
        _check_shapes(sealed["shapes"], restored["opt_state"])
    for name in _ITEMS:
        if (tree := restored.get(name)) is None:
            continue
        for (path, _), was, now in zip(
            jax.tree_util.tree_leaves_with_path(tree), sealed[name], fingerprints(tree), strict=True
        ):
            if was != now:
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} is not what was saved: its bytes have changed")


def _check_shapes(shapes: list[list[int]], opt_state: Any) -> None:
    """Refuse an optimizer's state that was cut or filled up to fit, other than Shampoo's blocks in number.

    Those are filled up to a multiple of the devices they are divided over, with zeros, which no fingerprint sees.
    """
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=lambda node: isinstance(node, Blocks))
    leaves = [(path, leaf, isinstance(node, Blocks)) for path, node in nodes for leaf in jax.tree.leaves(node)]
    for (path, leaf, is_blocks), shape in zip(leaves, shapes, strict=True):
        same = leaf.shape[1:] == tuple(shape[1:]) if is_blocks else leaf.shape == tuple(shape)
        if not same:
            raise ValueError(f"opt_state{jax.tree_util.keystr(path)} has the shape {shape} there, {leaf.shape} here")


def _digest(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
