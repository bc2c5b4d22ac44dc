"""Parameter trees: plain nested dicts of arrays, their flat names, and whether one is what a config calls for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Params = dict[str, Any]
"""A nested dict whose leaves are arrays."""


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested dicts to one, with keys joined by "/".

    >>> flatten({"text": {"norm": {"scale": 1}}, "logit_scale": 2})
    {'text/norm/scale': 1, 'logit_scale': 2}

    Args:
        params: nested dicts.

    Returns:
        The leaves by name.
    """
    flat = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": leaf for name, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Undoes :func:`flatten`.

    Args:
        flat: leaves by name.

    Returns:
        Nested dicts.
    """
    params: Params = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return params


def shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array by its flat name.

    Args:
        params: nested dicts of arrays, or of anything with a shape.

    Returns:
        Shapes by name.
    """
    return {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}


Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(expected: Shapes, arrived: Shapes, *, source: str) -> None:
    """Refuses shapes that are not exactly the expected ones.

    Args:
        expected: by name.
        arrived: by name.
        source: where the arrays are, for the message.

    Raises:
        ValueError: naming every missing, extra and misshapen array.
    """
    if expected == arrived:
        return
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in arrived]
    problems += [f"extra {name} {list(shape)}" for name, shape in arrived.items() if name not in expected]
    problems += [
        f"misshapen {name}: expected {list(shape)}, got {list(arrived[name])}"
        for name, shape in expected.items()
        if name in arrived and arrived[name] != shape
    ]
    raise ValueError(f"the arrays of {source} must be those of the config; they are not:\n  " + "\n  ".join(problems))
