"""What goes wrong in a run through no fault of ours, told as what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from clip_data import DataError
from clip_train.config_file import ConfigError, located
from clip_train.watch import BadStepError, full_disk, out_of_memory


@contextlib.contextmanager
def explained_faults() -> Iterator[None]:
    """Turn what goes wrong in training through no fault of ours into an error that says what to change."""
    with located("data.train", (DataError,)), located("guard", (BadStepError,)):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if (advice := out_of_memory(error)) is None:
                raise
            raise ConfigError(f"microbatch_size: {advice}") from error


@contextlib.contextmanager
def explained_writes() -> Iterator[None]:
    """Turn whatever a full disk makes of a run, and of its end, into one error that says what to change."""
    try:
        yield
    except Exception as error:
        if (advice := full_disk(error)) is None:
            raise
        raise ConfigError(f"output_dir: {advice}") from error
