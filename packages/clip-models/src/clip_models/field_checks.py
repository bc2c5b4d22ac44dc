"""How configs check their fields: each for the type that it is declared with, some for a range."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, get_args, get_origin

_ONE = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", types.NoneType: "None"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "strings"}


def check_types(config: Any) -> None:
    """Refuses values that are not of the type their field is declared with; JSON's lists pass for tuples of any length.

    Raises:
        ValueError: naming the first such field.
    """
    for name, declared in _declared(type(config)).items():
        value = getattr(config, name)
        if not _is_of(value, declared):
            raise ValueError(f"{name} must be {_in_words(declared)}; got {value!r}.")


def check_positive(config: Any, *names: str) -> None:
    """Refuses values below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}.")


def check_at_least_zero(config: Any, *names: str) -> None:
    """Refuses values below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative (0: derived from the others); got {getattr(config, name)}.")


def check_probability(config: Any, *names: str) -> None:
    """Refuses values outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1); got {getattr(config, name)}.")


@functools.cache
def _declared(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_of(value: Any, declared: Any) -> bool:
    if _is_union(declared):
        return any(_is_of(value, one) for one in get_args(declared))
    if get_origin(declared) is Literal:
        return isinstance(value, str) and value in get_args(declared)
    if get_origin(declared) is tuple:
        return isinstance(value, list | tuple) and all(_is_of(item, get_args(declared)[0]) for item in value)
    if isinstance(value, bool):
        return declared is bool
    return isinstance(value, (int, float) if declared is float else declared)


def _in_words(declared: Any) -> str:
    if _is_union(declared):
        *others, last = get_args(declared)
        if get_origin(last) is tuple and get_origin(get_args(last)[0]) is Literal:
            return f"one or several of {', '.join(get_args(get_args(last)[0]))}"
        return f"{', '.join(map(_in_words, others))} or {_in_words(last)}"
    if get_origin(declared) is Literal:
        return f"one of {', '.join(get_args(declared))}"
    if get_origin(declared) is tuple:
        return f"a list of {_SEVERAL[get_args(declared)[0]]}"
    return _ONE.get(declared) or f"a {declared.__name__}"


def _is_union(declared: Any) -> bool:
    return get_origin(declared) in (typing.Union, types.UnionType)
