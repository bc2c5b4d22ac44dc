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


def check_shapes(expected: Mapping[str, Any], arrived: Mapping[str, Any], *, source: str) -> None:
    """Refuses arrays that are not exactly the expected ones.

    Args:
        expected: by name, anything with a shape.
        arrived: by name, anything with a shape.
        source: what the arrays came from, for the message.

    Raises:
        ValueError: naming every missing, extra and misshapen array.
    """
    problems = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in arrived]
    problems += [f"extra {name} {list(arrived[name].shape)}" for name in arrived if name not in expected]
    problems += [
        f"misshapen {name}: expected {list(expected[name].shape)}, got {list(arrived[name].shape)}"
        for name in expected
        if name in arrived and tuple(expected[name].shape) != tuple(arrived[name].shape)
    ]
    if problems:
        raise ValueError(f"{source} must match the config array by array; it does not:\n  " + "\n  ".join(problems))
