"""What goes wrong in a run through no fault of ours, told as what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import jax

from clip_data import DataError
from clip_train.causes import full_disk, out_of_memory
from clip_train.config_file import ConfigError, located
from clip_train.watch import BadStepError

What = Literal["state", "step", "evaluation"]

_FIELDS: dict[What, str] = {"state": "sharding", "step": "microbatch_size", "evaluation": "evaluation"}
_ROOM: dict[What, str] = {
    "state": "Parameters and optimizer must fit: sharding 'fsdp' over more devices, or an optimizer that keeps less, "
    "such as adafactor or lion",
    "step": "In this order: a smaller microbatch_size, which changes nothing that is computed but for rounding; remat "
    "'minimal' or 'full'; sharding 'fsdp' over more devices. The run takes each of these where it was",
    "evaluation": "A smaller batch_size of the evaluation; sharding 'fsdp' over more devices",
}


@contextlib.contextmanager
def explained_faults(what: What = "step", *, at: str = "data.train") -> Iterator[None]:
    """Turn what goes wrong through no fault of ours into an error that says what to change.

    Args:
        what: is made: the state, at the start; an update; an evaluation.
        at: where in the config its data are named.
    """
    with located(at, (DataError,)), located("guard", (BadStepError,)):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if (found := out_of_memory(error)) is None:
                raise
            raise ConfigError(f"{_FIELDS[what]}: {found}\n{_ROOM[what]}") from error


@contextlib.contextmanager
def explained_writes() -> Iterator[None]:
    """Turn whatever a full disk makes of a run, and of its end, into one error that says what to change."""
    try:
        yield
    except Exception as error:
        if (advice := full_disk(error)) is None:
            raise
        raise ConfigError(f"output_dir: {advice}") from error
