"""Where the shards are: paths, globs, brace lists and buckets, and how to read bytes of one.

Knows no format: a shard is a named run of bytes here.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from clip_data.buckets import REMOTE, RemoteShard, list_objects, read_object

__all__ = ["Shard", "expected_count", "list_shards", "open_shard"]


class Shard(Protocol):
    """An open shard: ``read_at`` may be called from any thread."""

    path: str
    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Returns ``length`` bytes from ``offset`` on, fewer only at the end of the shard."""
        ...


class _LocalShard:
    def __init__(self, path: str):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:  # of more than 2 GiB the system gives a part
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self, close=os.close):
        # Shards are shared between threads and dropped from a cache while others may still read them. `close` is bound
        # here because at the interpreter's end `os` may be gone.
        if hasattr(self, "_descriptor"):
            close(self._descriptor)


def open_shard(path: str) -> Shard:
    """Opens one shard.

    Args:
        path: As ``list_shards`` returns it.

    Returns:
        The shard. A remote one is held in memory, whole, until it is dropped.

    Raises:
        OSError: It cannot be read; the message names it.
    """
    if not path.startswith(REMOTE):
        return _LocalShard(path)
    try:
        return RemoteShard(path)
    except OSError as error:
        raise OSError(f"shard {path} cannot be read: {error}") from error


def list_shards(patterns: str | Sequence[str], *, folders: bool = False) -> list[str]:
    """Lists the shards that patterns name.

    Args:
        patterns: Paths, globs and brace lists, as ``SourceConfig.shards``.
        folders: Whether shards are local folders rather than files.

    Returns:
        One path for each shard: patterns in their order, brace lists counted up, globs sorted.

    Raises:
        FileNotFoundError: Some pattern names no shard; all such patterns are listed.
        PermissionError: Some local shard may not be read; all are listed.
        ValueError: A shard is named twice, or folders are remote.
    """
    shards: list[str] = []
    missing: list[str] = []
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    for pattern in itertools.chain.from_iterable(map(_expand_braces, patterns)):
        if folders and pattern.startswith(REMOTE):
            raise ValueError(f"folders of files are read from local disks only, not {pattern}: pack them into shards")
        found = list_objects(pattern) if pattern.startswith(REMOTE) else _list_local(pattern, folders=folders)
        shards.extend(found)
        if not found:
            missing.append(pattern)
    if missing:
        hint = "; a directory's files are named by a glob, DIR/*.tar" if any(map(os.path.isdir, missing)) else ""
        hint = "; the format reads folders, not files" if folders and any(map(os.path.isfile, missing)) else hint
        raise FileNotFoundError(f"no shard at {', '.join(_first(missing))}{hint}")
    unreadable = [path for path in shards if not path.startswith(REMOTE) and not os.access(path, os.R_OK)]
    if unreadable:
        raise PermissionError(f"no permission to read {', '.join(_first(unreadable))}")
    if len(set(shards)) < len(shards):
        twice = sorted(path for path, count in Counter(shards).items() if count > 1)
        raise ValueError(f"name each shard once ({', '.join(_first(twice))} came again) and repeat data by weight")
    return shards


def expected_count(path: str, field: str = "successes") -> int | None:
    """Returns the number of samples that img2dataset's ``_stats.json`` beside a shard in a bucket states.

    Args:
        path: As ``list_shards`` returns it.
        field: Of that file: ``"successes"``, or ``"count"`` for a format that holds the failed downloads too.

    Returns:
        The number, or None where the shard is local, which is quicker to count than to trust, or has no such file.
    """
    if not path.startswith(REMOTE):
        return None
    stats = os.path.splitext(path)[0] + "_stats.json"
    try:
        return int(json.loads(bytes(read_object(stats)))[field])
    except (FileNotFoundError, KeyError, TypeError, ValueError):  # none there, or not img2dataset's
        return None


def _first(items: list[str], limit: int = 20) -> list[str]:
    return items if len(items) <= limit else [*items[:limit], f"and {len(items) - limit} more"]


def _expand_braces(pattern: str) -> list[str]:
    """Expands ``{000..123}`` and ``{a,b}``, leftmost slowest."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    body = match[1]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        first, last = span.groups()
        if int(last) < int(first):
            raise ValueError(f"a brace list must count up, not {{{body}}} in {pattern!r}")
        items = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in body:
        items = body.split(",")
    else:
        raise ValueError(f"a brace list is {{000..123}} or {{a,b}}, not {{{body}}} in {pattern!r}")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + item + rest for item in items for rest in _expand_braces(tail)]


def _list_local(pattern: str, *, folders: bool) -> list[str]:
    path = os.path.expanduser(pattern.removeprefix("file://"))
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
    return [path for path in found if (os.path.isdir if folders else os.path.isfile)(path)]
