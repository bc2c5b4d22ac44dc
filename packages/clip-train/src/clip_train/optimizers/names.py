"""Parameters by name: `vision/blocks/mlp/fc1/kernel`, the path in the tree; patterns over names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import jax


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf: the keys on its path in the tree, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` of a function that gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern takes a name: a glob over the whole of it, or over its first parts.

    Examples:
        >>> matches("vision", "vision/blocks/mlp/fc1/kernel"), matches("*/bias", "text/norm/bias")
        (True, True)
        >>> matches("vision/blocks", "vision/blocks2/mlp")
        False
    """
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")


def require_matches(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Refuse patterns that take no parameter.

    Raises:
        ValueError: naming the pattern and the nearest names there are.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            prefixes = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
            near = difflib.get_close_matches(pattern, sorted(prefixes), n=3, cutoff=0.4) or sorted(
                {name.split("/")[0] for name in names}
            )
            raise ValueError(
                f"no parameter is matched by {pattern!r}; a pattern is a name such as 'vision' or a glob such as "
                f"'*/bias'. The nearest names: {', '.join(near)}"
            )
