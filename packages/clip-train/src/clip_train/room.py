"""Room on this machine's disk for a run that lives in a bucket; what a killed process left there is removed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

_LOCK = "lock"


class Room:
    """A temporary folder of this process, which goes with it; `TMPDIR` says on which disk.

    Args:
        address: what it is for: `gs://` or `s3://`.

    Attributes:
        path: the folder.
    """

    def __init__(self, address: str) -> None:
        prefix = f"clip-train-{hashlib.sha256(address.encode()).hexdigest()[:12]}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_abandoned(left)
        made = Path(tempfile.mkdtemp(prefix="clip-train-"))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.replace("clip-train-", prefix)))  # others see it locked
        self.path = folder / "files"
        self.path.mkdir()
        self._end = weakref.finalize(self, _remove, folder, self._lock)

    def close(self) -> None:
        """Remove the folder."""
        self._end()


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder whose process is gone: a lock is held by the living alone."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return  # another user's, or gone by now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
