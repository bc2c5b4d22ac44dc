"""A run's directory is used by one start of the run at a time; one whose process or machine is gone holds nothing.

On one machine the kernel tells: it frees a dead process's lock, and knows which processes there are. Of another machine
there is a sign of life, which a living process renews: it is watched for a while, by no clock but that of who watches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from clip_data.buckets import REMOTE, delete_object, list_objects, read_object, write_object

NAME = "lock"

BEAT = 15.0
"""Seconds between two signs of life."""
SILENT = 45.0
"""Seconds without one after which a holder is gone."""
PATIENCE = 150.0
"""Seconds that somebody waits for a holder to go: the last process of several may take a minute to see that it is."""
_LONG_AGO = 3600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class InUseError(ValueError):
    """Another start of the run goes on."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who uses a directory.

    Attributes:
        token: of this start alone.
        host: its machine's name.
        boot: of its kernel, as long as that runs; its machine's name where that is not told.
        space: in which its process has its number.
        pid: that number.
        started: when the process did, by its kernel's count: another may have the number by now.
        since: when it began, in seconds since 1970 by its own clock.
        beat: a number that grows while it lives.
    """

    token: str
    host: str
    boot: str
    space: str
    pid: int
    started: str
    since: float
    beat: int = 0

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_read("/proc/sys/kernel/random/boot_id") or socket.gethostname(),
            space=os.readlink("/proc/self/ns/pid") if os.path.lexists("/proc/self/ns/pid") else "",
            pid=os.getpid(),
            started=_started(os.getpid()),
            since=time.time(),
        )


_UNTOLD = Holder(token="", host="a machine that is not told", boot="", space="", pid=0, started="", since=0.0)


class Lease:
    """The use of a directory: taken when it is made, given back when it is closed or the process ends.

    Args:
        address: of the directory: a local path, `gs://` or `s3://`.
        say: told that somebody else seems to use it, and that this is waited for.

    Raises:
        InUseError: somebody else does.
        OSError: the directory cannot be written.
    """

    def __init__(self, address: str, say: Callable[[str], None] = lambda _: None) -> None:
        self._me, self._say, self._address = Holder.me(), say, address
        self._place: _File | _Object = _Object(address) if address.startswith(REMOTE) else _File(Path(address))
        try:
            is_alone, holder = self._place.lock(), self._place.read()
            lives = self._lives(holder, is_alone=is_alone)
            if lives:
                raise self._in_use(holder)
            if lives is None and holder is not None:
                self._watch(holder)
                if not is_alone:
                    self._place.lock()  # some servers keep a dead machine's lock for ever: then this one goes without
            self._place.write(self._me)
        except BaseException:
            self._place.close()
            raise
        self._lost: Holder | None = None
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="clip-train-lease", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Make sure that the directory is still this start's.

        Raises:
            InUseError: another one has taken it: this one was silent for too long, or both began at once.
        """
        if self._lost is not None:
            raise self._in_use(self._lost)

    def close(self) -> None:
        """Give it back."""
        self._ended.set()
        self._beats.join(BEAT)  # a store may not answer for long
        if self._lost is None:
            with contextlib.suppress(OSError):  # it is silent from now on, which says the same
                self._place.remove()
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lives(self, holder: Holder | None, *, is_alone: bool) -> bool | None:
        """Whether the process that uses the directory does live, where that can be told from here; else `None`."""
        if holder is None or holder == _UNTOLD:
            return not is_alone  # it has just begun, or was cut off when it had
        if holder.boot == self._me.boot:
            if self._place.locks:
                return not is_alone
            if holder.space == self._me.space:
                return _started(holder.pid) == holder.started
        silent = time.time() - holder.since - BEAT * holder.beat
        return False if is_alone and silent > _LONG_AGO else None

    def _watch(self, holder: Holder) -> None:
        """Return once a holder gives no sign of life."""
        self._say(
            f"{self._address} seems to be in use by process {holder.pid} on {holder.host}; waiting up to "
            f"{PATIENCE:.0f} s for a sign of life, or for its end."
        )
        began = changed = time.monotonic()
        while (now := time.monotonic()) - changed < SILENT:
            if now - began > PATIENCE:
                raise self._in_use(holder)
            time.sleep(BEAT / 15)
            seen = self._place.read()
            if seen is None:
                return
            if seen != holder:
                holder, changed = seen, time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a store that does not answer now may answer next time
                holder = self._place.read()
                if holder is not None and holder.token != self._me.token:
                    self._lost = holder
                    return
                self._me = dataclasses.replace(self._me, beat=self._me.beat + 1)
                self._place.write(self._me)

    def _in_use(self, holder: Holder | None) -> InUseError:
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
        since = "" if holder is None else f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
        return InUseError(
            f"{self._address} is in use by {who}{since}: a run goes on once at a time. Stop that one first, or give "
            "another directory: --set output_dir=DIR"
        )


class _File:
    """The sign in a local directory, or on a file system that machines share; its lock is this kernel's."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = -1
        self.locks = True

    def lock(self) -> bool:
        """Lock the file; whether nobody has."""
        while True:
            self.close()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self.locks = False
                return True
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                    return True  # and not one that whoever had it has removed meanwhile

    def read(self) -> Holder | None:
        try:
            return _parse(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, holder: Holder) -> None:
        os.pwrite(self._descriptor, _line(holder), 0)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Object:
    """The sign in a bucket; nothing there can be locked."""

    locks = False

    def __init__(self, address: str) -> None:
        self._path = f"{address}/{NAME}"

    def lock(self) -> bool:
        return True

    def read(self) -> Holder | None:
        return _parse(bytes(read_object(self._path))) if list_objects(self._path) else None

    def write(self, holder: Holder) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(_line(holder))
            file.flush()
            write_object(self._path, file.name)

    def remove(self) -> None:
        delete_object(self._path)

    def close(self) -> None:
        pass


def _line(holder: Holder) -> bytes:
    # Always as long: one that is written over another leaves nothing of it behind.
    return json.dumps(dataclasses.asdict(holder)).encode().ljust(511) + b"\n"


def _parse(line: bytes) -> Holder:
    try:
        return Holder(**json.loads(line))
    except (ValueError, TypeError):
        return _UNTOLD  # it is being written for the first time, or was


def _started(pid: int) -> str:
    """When a process started, by its kernel's count; empty: there is none, or it is not told."""
    # Its name, in brackets, may hold anything; the 22nd field of all is the 20th after it.
    return "".join(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19:20])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
