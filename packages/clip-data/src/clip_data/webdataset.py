"""WebDataset shards: uncompressed tar files, PAX, GNU or USTAR, whose adjacent members of one stem form a sample.

Members are found by hopping from header to header; nothing is ever unpacked to disk.

References:
    POSIX pax interchange format, https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from clip_data.faults import Fault, empty_shard
from clip_data.fields import parse_json
from clip_data.sources import Shard, open_shard

__all__ = ["TarEntry", "TarReader", "index_tar", "read_sample", "write_samples"]

TarEntry = tuple[str, dict[str, tuple[int, int]]]
"""A sample's key, its path up to the first dot of the name, and the offset and length of each member by extension."""

_BLOCK = 512
_MAX_NAME_BLOCK = 1 << 20  # a pax header or long name larger than this is damage


class TarReader:
    """An open tar file, as ``records.Reader`` describes it.

    Args:
        path: Where it is.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: str):
        self._shard = open_shard(path)
        self._entries, self.fault = index_tar(self._shard)

    def __len__(self) -> int:
        return len(self._entries)

    def offset(self, row: int) -> int:
        """Returns the byte offset of the first of a sample's members."""
        return min(offset for offset, _ in self._entries[row][1].values())

    def read(self, row: int) -> dict[str, Any]:
        """Returns a sample's fields."""
        return read_sample(self._shard, self._entries[row])


def index_tar(shard: Shard) -> tuple[list[TarEntry], Fault | None]:
    """Finds the samples of a shard.

    Args:
        shard: An open shard.

    Returns:
        One entry for each sample whose members are all whole, and what ended the walk early, if anything did, or else
        that adjacent members have one name, of which the first counts.
    """
    entries: list[TarEntry] = []
    if not shard.size:
        return entries, empty_shard(shard.path)
    offset = num_again = 0
    long_name: str | None = None
    long_size: int | None = None
    fault: Fault | None = None
    while offset < shard.size:
        header = shard.read_at(offset, _BLOCK)
        if header == bytes(_BLOCK):
            break
        if len(header) < _BLOCK:
            fault = _fault(shard, offset, "shard_cut_short", "the file ends inside a header", len(entries))
            break
        try:
            name, size, kind = _parse_header(header)
            size = size if long_size is None else long_size
            if size < 0:  # would lead back to where the walk has been
                raise ValueError(f"a size of {size}")
            data = offset + _BLOCK
            if data + size > shard.size:
                fault = _fault(shard, offset, "shard_cut_short", "the file ends inside a member", len(entries))
                break
            if kind in (b"x", b"L"):
                if size > _MAX_NAME_BLOCK:
                    raise ValueError(f"a header of {size} bytes")
                content = shard.read_at(data, size)
                if kind == b"L":
                    long_name = content.rstrip(b"\0").decode("utf-8", "replace")
                else:
                    fields = _parse_pax(content)
                    long_name = fields.get("path", long_name)
                    long_size = int(fields["size"]) if "size" in fields else long_size
        except ValueError as error:
            fault = _fault(shard, offset, "bad_length", f"not a tar header ({error})", len(entries))
            break
        if kind not in (b"x", b"L"):
            name, long_name, long_size = long_name or name, None, None
            directory, _, filename = name.rpartition("/")
            base, dot, extension = filename.partition(".")
            if kind in (b"0", b"\0") and base and dot:
                key = "/".join([*(part for part in directory.split("/") if part not in ("", ".", "..")), base])
                if not entries or entries[-1][0] != key:
                    entries.append((key, {}))
                num_again += extension.lower() in entries[-1][1]
                entries[-1][1].setdefault(extension.lower(), (data, size))
        offset = data + -(-size // _BLOCK) * _BLOCK
    else:
        # Writers close a tar with two zero blocks; without them its last sample may lack members.
        fault = _fault(shard, offset, "shard_cut_short", "the file has no closing blocks", len(entries))
    if fault is not None and entries:
        entries.pop()
    if fault is None and num_again:
        detail = f"{num_again} members have the name of the one before them or beside it, which counts"
        fault = Fault(shard=shard.path, reason="duplicate_key", detail=detail, lost=False)
    return entries, fault


def read_sample(shard: Shard, entry: TarEntry) -> dict[str, Any]:
    """Reads one sample.

    Args:
        shard: An open shard.
        entry: As from ``index_tar``.

    Returns:
        The bytes of each member by extension, over the fields of its ``json``, and ``__key__``.

    Raises:
        RecordError: The ``json`` member is no JSON object.
    """
    key, members = entry
    fields: dict[str, Any] = {extension: shard.read_at(*where) for extension, where in members.items()}
    if "json" in fields:
        fields = parse_json(fields.pop("json"), "its json member", key=key) | fields
    return fields | {"__key__": key}


def write_samples(path: str | os.PathLike[str], samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes one tar file.

    Args:
        path: Where to; an existing file is replaced.
        samples: For each a key without dots or slashes, unlike its neighbours', and the bytes of each member by
            extension. The same samples give the same file.

    Returns:
        The number of samples written.

    Raises:
        ValueError: A key would not be read back as it is.
    """
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for count, (key, members) in enumerate(samples, start=1):  # noqa: B007
            if not key or "." in key or "/" in key:
                raise ValueError(f"a sample's key must have neither dots nor slashes; {key!r} has")
            for extension, data in sorted(members.items()):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return count


def _fault(shard: Shard, offset: int, reason: Any, detail: str, num_samples: int) -> Fault:
    kept = f"{detail}, after {max(num_samples - 1, 0)} whole samples"
    return Fault(shard=shard.path, offset=offset, reason=reason, detail=kept, lost=False)


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Returns a member's name, size and type."""
    stated = int(header[148:156].strip(b" \0") or b"0", 8)
    if stated != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
        raise ValueError("its checksum is wrong")
    if header[124] & 0x80:
        size = int.from_bytes(header[125:136], "big")
    else:
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" * bool(prefix) + name).decode("utf-8", "replace"), size, header[156:157]


def _parse_pax(content: bytes) -> dict[str, str]:
    fields, position = {}, 0
    while position < len(content):
        space = content.index(b" ", position)
        length = int(content[position:space])
        if length <= space - position:
            raise ValueError("a pax field of no length")
        name, _, value = content[space + 1 : position + length - 1].partition(b"=")
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position += length
    return fields
