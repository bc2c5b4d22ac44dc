"""What a user's own function makes of records, before they are decoded."""

from __future__ import annotations

from collections.abc import Callable

from clip_data.faults import RecordError
from clip_data.fields import Record

__all__ = ["Transform", "transform_identity", "transform_record"]

Transform = Callable[[Record], Record | None]
"""A pure function of a record: another one in its place, or None where it is not wanted."""


def transform_identity(transform: Transform | None) -> str:
    """Returns what a cursor remembers of a transform: its ``identity``, or its module and name.

    Args:
        transform: A function of a module, or any callable with a string ``identity``, to be changed with its meaning.

    Raises:
        ValueError: It is neither: nothing would tell it from another in the next run.
    """
    if transform is None:
        return ""
    identity = getattr(transform, "identity", None)
    if isinstance(identity, str) and identity:
        return identity
    name = getattr(transform, "__qualname__", "")
    if not name or "<" in name:
        raise ValueError(
            f"a transform must be a function of a module or have a string 'identity', by which a cursor knows it; "
            f"{transform!r:.100} is neither"
        )
    return f"{transform.__module__}.{name}"


def transform_record(transform: Transform, record: Record) -> Record:
    """Applies a transform.

    Raises:
        RecordError: ``filtered``, where it does not want the record.
        TypeError: It returns neither a record nor None.
    """
    transformed = transform(record)
    if transformed is None:
        raise RecordError("filtered", "the transform does not want it")
    if not isinstance(transformed, Record):
        raise TypeError(f"a transform must return a Record or None, not {type(transformed).__name__}")
    return transformed
