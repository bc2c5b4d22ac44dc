"""What lies behind an error, of whatever library it comes from: no memory, a full disk, a disk that cannot be read."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# These say something of the machine, and nothing of what is in a file.
_UNREADABLE = (
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.ENXIO,
)
_SHOWN_LINES, _SHOWN_COLUMNS = 24, 160


def out_of_memory(error: BaseException) -> str | None:
    """What is known of it when memory does not suffice, and first how much was wanted; None: the error is another.

    Args:
        error: of jax; what a compiler lists as its largest allocations is kept.
    """
    text = str(error)
    if isinstance(error, MemoryError):
        return "this machine's memory does not suffice"
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        return None
    wanted = re.search(r"(?:allocat\w+|Used|requires?)[^.\n]*?(\d[\d.]* ?[KMGT]i?B?\b|\d+ bytes)", text)
    lines = [line.rstrip()[:_SHOWN_COLUMNS] for line in text.splitlines() if line.strip()]
    shown = lines[:_SHOWN_LINES] + (["…"] if len(lines) > _SHOWN_LINES else [])
    what = f" (it wanted {wanted[1]})" if wanted else ""
    return f"the devices' memory does not suffice{what}:\n" + "\n".join(f"  {line}" for line in shown)


def full_disk(error: BaseException) -> str | None:
    """What to do when nothing more can be written; None: the error is another.

    Args:
        error: of a write, or one that came of it.
    """
    if not _any_of(error, _FULL, told=(errno.ENOSPC,)):
        return None
    return (
        f"{os.strerror(errno.ENOSPC)}: nothing more can be written. The checkpoints are whole: make room, "
        "or let fewer be kept (checkpoint.keep), and the same command continues from the newest"
    )


def unreadable(error: BaseException) -> bool:
    """Whether something could not be read for a reason that says nothing of it: it may be whole.

    Args:
        error: of a read, or one that came of it.
    """
    return _any_of(error, _UNREADABLE, told=_UNREADABLE) or any(
        out_of_memory(cause) is not None for cause in _causes(error)
    )


def _any_of(error: BaseException, numbers: Collection[int], *, told: Collection[int]) -> bool:
    """Whether the error or a cause of it has one of these numbers, or says one of them in the system's words."""
    words = [os.strerror(number) for number in told]
    return any(
        (isinstance(cause, OSError) and cause.errno in numbers) or any(word in str(cause) for word in words)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
