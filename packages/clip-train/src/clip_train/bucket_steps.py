"""Checkpoints in a bucket: a step's files are written in a few large parts, and count once a list of them is there."""

from __future__ import annotations

import io
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from clip_data.buckets import delete_object, list_below, read_object, write_object

_AT_ONCE = 8
_PART_BYTES = 64 << 20

A = TypeVar("A")
B = TypeVar("B")


class BucketSteps:
    """The checkpoints below one prefix: of process I of N `STEP/I/PART.zip` and a list, `STEP/whole.I-of-N.START.json`.

    A bucket has no folder to rename, and takes a while for each object, however small. Each process writes its files
    in parts of 64 MiB or more, then the list of the parts with their sizes: a step is whole where all N lists of one
    start of the run are.

    Args:
        prefix: `gs://` or `s3://`.
        process_index: which process this is.
        process_count: of how many.
        start: a name of this start of the run, the same in all its processes: what one start left unfinished is not
            completed by another.
    """

    def __init__(self, prefix: str, *, process_index: int = 0, process_count: int = 1, start: str = "0") -> None:
        self.prefix = prefix.rstrip("/")
        self._index = process_index
        self._list = _list_name(process_index, process_count, start)

    def whole(self) -> list[int]:
        """The steps that count, in order.

        Raises:
            OSError: the store cannot be asked.
        """
        return [step for step, names in self._by_step().items() if _lists(names)]

    def put(self, step: int, folder: Path, files: Iterable[str]) -> None:
        """Write this process's files of a step, and then that they are there.

        Args:
            step: its number.
            folder: that the files are in.
            files: their names from there on.

        Raises:
            OSError: one of them could not be written.
        """
        packed = folder.with_suffix(".parts")
        packed.mkdir()
        try:
            sizes = dict(_each(lambda part: self._put_part(step, folder, *part), enumerate(_parts(folder, files))))
            (listed := packed / self._list).write_text(json.dumps({"files": sizes}))
            write_object(f"{self.prefix}/{step}/{self._list}", listed)
        finally:
            shutil.rmtree(packed)

    def _put_part(self, step: int, folder: Path, number: int, names: list[str]) -> tuple[str, int]:
        part = folder.with_suffix(".parts") / f"{number:05d}.zip"
        with zipfile.ZipFile(part, "w") as archive:
            for name in names:
                archive.write(folder / name, name)
        size = part.stat().st_size
        write_object(f"{self.prefix}/{step}/{self._index}/{part.name}", part)
        part.unlink()
        return part.name, size

    def get(self, step: int, folder: Path) -> int:
        """Read the files of a whole step, those of all processes, into a folder.

        Returns:
            How many processes wrote them.

        Raises:
            ValueError: some are not what was written.
            OSError: the store cannot be read.
        """
        there = self._by_step()[step]
        lists, parts = _lists(there), list[str]()
        for index, name in enumerate(lists):
            listed = json.loads(bytes(read_object(f"{self.prefix}/{step}/{name}")))["files"]
            for part, size in listed.items():
                path = f"{index}/{part}"
                if there.get(path) != size:
                    raise ValueError(f"{self.prefix}/{step}/{path} has {there.get(path, 'no')} bytes of {size}")
                parts.append(path)
        lock = threading.Lock()

        def fetch(part: str) -> None:
            data = io.BytesIO(read_object(f"{self.prefix}/{step}/{part}"))
            try:
                # What several processes wrote, such as the tree's description, is the same in all.
                with lock, zipfile.ZipFile(data) as archive:
                    archive.extractall(folder)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self.prefix}/{step}/{part} is not what was written: {error}") from error

        _each(fetch, parts)
        return len(lists)

    def forget_after(self, step: int) -> None:
        """Have the steps after this one count no longer; what is there of them goes when they are pruned."""
        for later, names in self._by_step().items():
            if later > step:
                self._delete(later, filter(_is_list, names))

    def prune(self, keep: int) -> None:
        """Delete all steps before the newest `keep` whole ones, and what was begun before those."""
        found = self._by_step()
        kept = [step for step, names in found.items() if _lists(names)][-keep:]
        for step, names in found.items():
            if kept and step < kept[0]:
                self._delete(step, filter(_is_list, names))
                self._delete(step, [name for name in names if not _is_list(name)])

    def _delete(self, step: int, names: Iterable[str]) -> None:
        _each(lambda name: delete_object(f"{self.prefix}/{step}/{name}"), names)

    def _by_step(self) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = {}
        for name, size in list_below(self.prefix).items():
            step, _, inner = name.partition("/")
            if step.isdigit() and inner:
                found.setdefault(int(step), {})[inner] = size
        return dict(sorted(found.items()))


def _list_name(index: int, count: int, start: str) -> str:
    return f"whole.{index}-of-{count}.{start}.json"


def _is_list(name: str) -> bool:
    return name.startswith("whole.")


def _lists(names: Iterable[str]) -> list[str]:
    """The lists of a whole step, in the order of its processes; none: it is not whole."""
    there = set(filter(_is_list, names))
    for name in sorted(there):
        _, place, start, _ = name.split(".")
        count = int(place.rpartition("-")[2])
        wanted = [_list_name(i, count, start) for i in range(count)]
        if there.issuperset(wanted):
            return wanted
    return []


def _parts(folder: Path, names: Iterable[str]) -> Iterator[list[str]]:
    """Groups files, so that each group but the last has at least `_PART_BYTES`."""
    part, size = list[str](), 0
    for name in names:
        part.append(name)
        size += (folder / name).stat().st_size
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _each(do: Callable[[A], B], items: Iterable[A]) -> list[B]:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="clip-train-bucket") as pool:
        return list(pool.map(do, items))
