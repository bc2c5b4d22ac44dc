"""Several processes as one run: they start together, fail together, and one of them speaks and writes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from clip_sharding import exchange
from clip_train.config_file import ConfigError


class AgreedError(ConfigError):
    """A fault that every process of the run raises: the first tells it."""


def several() -> bool:
    """Whether this is one of several processes; asks jax for no device."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process writes the run's files and speaks for all; alone, it does."""
    return not several() or jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Refuse in every process what one of them refuses; all run the block, and nothing in it waits for the others.

    Raises:
        AgreedError: the fault of the first process that has one.
    """
    fault = None
    try:
        yield
    except ConfigError as error:
        if not several():
            raise
        fault = error
    if not several():
        return
    faults = exchange(None if fault is None else str(fault))
    told = [(process, text) for process, text in enumerate(faults) if text is not None]
    if told:
        process, text = told[0]
        everyone = len(told) == len(faults)
        raise AgreedError(text if everyone else f"process {process} of {len(faults)}: {text}") from fault


def leave(status: int) -> None:
    """End this process without another word to the others, who find it gone and end too.

    An ordinary exit waits for them, and they for a collective that will not come.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
