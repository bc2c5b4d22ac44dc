"""What differs between two configs, and what of that a run may go on with."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from clip_sharding import exchange
from clip_train.processes import AgreedError

# Changes nothing that a run has computed.
_HARMLESS = frozenset(
    {
        "output_dir",
        "log",
        "checkpoint",
        "evaluation",
        "guard",
        "train_samples",
        "data.num_threads",
        "data.max_bad_fraction",
    }
)

ROUNDING = frozenset(
    {
        "microbatch_size",
        "remat",
        "attention",
        "unroll",
        "mesh",
        "sharding",
        "model.config.compute.remat",
        "model.config.compute.unroll",
        "model.config.compute.attention",
    }
)
"""Changes how it is computed: rounding, and what is drawn for each microbatch and device, as for dropout."""


def check_alike(config: dict[str, Any]) -> None:
    """Make sure that all processes were started with the same config.

    Args:
        config: the resolved config.

    Raises:
        AgreedError: naming the first process whose config differs, and where.
    """
    first, *others = exchange(config)
    for process, other in enumerate(others, start=1):
        if changes := differences(first, other, harmless=()):
            raise AgreedError(
                f"all processes of a run are given the same config; that of process {process} differs:\n"
                + "\n".join(f"  {path}: {theirs}, and {ours} in process 0" for path, ours, theirs in changes)
            )


def differences(
    before: dict[str, Any], after: dict[str, Any], harmless: Collection[str] = _HARMLESS | ROUNDING
) -> list[tuple[str, str, str]]:
    """What differs between two configs: `(path, before, after)`.

    Args:
        before: a resolved config.
        after: another.
        harmless: the fields that may; by default those that a run may go on with.
    """
    flat_before, flat_after = _flatten(before), _flatten(after)
    changed = [path for path in flat_before | flat_after if flat_before.get(path) != flat_after.get(path)]
    return [
        (path, json.dumps(flat_before.get(path)), json.dumps(flat_after.get(path)))
        for path in changed
        if not _is_among(path, harmless)
    ]


def in_words(changes: list[tuple[str, str, str]], there: str = "there", here: str = "here") -> str:
    """Differences, one on a line."""
    return "\n".join(f"  {path}: {old} {there}, {new} {here}" for path, old, new in changes)


def rounding_changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two configs of how the same is computed."""
    return [change for change in differences(before, after, harmless=()) if _is_among(change[0], ROUNDING)]


def _is_among(path: str, fields: Collection[str]) -> bool:
    return any(path == field or path.startswith(field + ".") for field in fields)


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {path: tree}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat |= _flatten(value, f"{path}.{name}" if path else str(name))
    return flat
