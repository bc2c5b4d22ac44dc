"""Where the shards are: paths, globs, brace lists and buckets, and how to read bytes of one.

Knows no format: a shard is a named run of bytes here.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from clip_data.buckets import REMOTE, RemoteShard, list_objects, read_object

__all__ = ["Shard", "expected_count", "list_shards", "open_shard"]


_MAX_LISTED = 1000  # paths in a message
_MAX_EXPANDED = 1_000_000  # shards of a brace list


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
        FileNotFoundError: Some pattern names no shard; all such patterns are listed, and what may not be read.
        PermissionError: Some local shard may not be read, and none is missing; all are listed.
        ValueError: A shard is named twice, a brace list is none, or folders are remote.
    """
    shards: list[str] = []
    missing: list[str] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if folders and pattern.startswith(REMOTE):
            raise ValueError(f"folders of files are read from local disks only, not {pattern}: pack them into shards")
        for name in [pattern] if _is_there(pattern, folders=folders) else _expand_braces(pattern):
            found = list_objects(name) if name.startswith(REMOTE) else _list_local(name, folders=folders)
            shards.extend(found)
            if not found:
                missing.append(name)
    problems = []
    if missing:
        hint = "; a directory's files are named by a glob, DIR/*.tar" if any(map(os.path.isdir, missing)) else ""
        hint = "; the format reads folders, not files" if folders and any(map(os.path.isfile, missing)) else hint
        problems.append(f"no shard at {_listed(missing)}{hint}")
    unreadable = [path for path in shards if not path.startswith(REMOTE) and not os.access(path, os.R_OK)]
    if unreadable:
        problems.append(f"no permission to read {_listed(unreadable)}")
    if problems:
        raise (FileNotFoundError if missing else PermissionError)("; ".join(problems))
    if len(set(shards)) < len(shards):
        twice = sorted(path for path, count in Counter(shards).items() if count > 1)
        raise ValueError(f"name each shard once ({_listed(twice)} came again) and repeat data by weight")
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


def _listed(paths: list[str]) -> str:
    return ", ".join([*paths[:_MAX_LISTED], *([f"and {len(paths) - _MAX_LISTED} more"] * (len(paths) > _MAX_LISTED))])


def _expand_braces(pattern: str) -> list[str]:
    """Expands ``{000..123}`` and ``{a,b}``, also in one another, leftmost slowest.

    >>> _expand_braces("{a,b{1..2}}.tar")
    ['a.tar', 'b1.tar', 'b2.tar']
    """
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    parts, depth, first = [], 0, start + 1
    for place in range(start, len(pattern)):
        if pattern[place] == "{":
            depth += 1
        elif pattern[place] == "}":
            depth -= 1
        if depth == 0 or (depth == 1 and pattern[place] == ","):
            parts.append(pattern[first:place])
            first = place + 1
        if depth == 0:
            break
    else:
        raise ValueError(f"a brace does not end in {pattern!r}")
    if len(parts) > 1:
        items = [item for part in parts for item in _expand_braces(part)]
    else:
        items = _count_up(parts[0], pattern)
    tails = _expand_braces(pattern[first:])
    if len(items) * len(tails) > _MAX_EXPANDED:
        raise ValueError(f"{pattern!r} names {len(items) * len(tails)} shards, more than {_MAX_EXPANDED}")
    return [pattern[:start] + item + tail for item in items for tail in tails]


def _count_up(body: str, pattern: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span is None:
        raise ValueError(f"a brace list is {{000..123}} or {{a,b}}, not {{{body}}} in {pattern!r}")
    first, last = map(int, span.groups())
    if last < first:
        raise ValueError(f"a brace list must count up, not {{{body}}} in {pattern!r}")
    if last - first >= _MAX_EXPANDED:
        raise ValueError(f"{{{body}}} in {pattern!r} names {last - first + 1} shards, more than {_MAX_EXPANDED}")
    return [str(number).zfill(len(span[1])) for number in range(first, last + 1)]


def _is_there(pattern: str, *, folders: bool) -> bool:
    """Whether there is a local shard of this very name, braces, stars and brackets included."""
    return (os.path.isdir if folders else os.path.isfile)(_local_path(pattern))


def _list_local(pattern: str, *, folders: bool) -> list[str]:
    path = _local_path(pattern)
    is_plain = not glob.has_magic(path) or _is_there(pattern, folders=folders)
    found = [path] if is_plain else sorted(glob.glob(path, recursive=True))
    return [path for path in found if (os.path.isdir if folders else os.path.isfile)(path)]


def _local_path(pattern: str) -> str:
    return os.path.expanduser(pattern.removeprefix("file://"))
