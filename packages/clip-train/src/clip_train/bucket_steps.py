"""Checkpoints in a bucket: the files of a step are written one by one, and count once a list of them is there too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clip_data.buckets import delete_object, list_below, read_object, write_object

_AT_ONCE = 8


class BucketSteps:
    """The checkpoints below one prefix: `STEP/FILE…`, and `STEP/whole.I-of-N.json` for each process that wrote them.

    A bucket has no folder to rename. Process I of N writes its files and then the list of them with their sizes: a
    step is whole where all N lists are.

    Args:
        prefix: `gs://` or `s3://`.
        process_index: which process this is.
        process_count: of how many.
    """

    def __init__(self, prefix: str, *, process_index: int = 0, process_count: int = 1) -> None:
        self.prefix = prefix.rstrip("/")
        self._list = _list_name(process_index, process_count)

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
        sizes = {name: (folder / name).stat().st_size for name in files}
        _each(lambda name: write_object(f"{self.prefix}/{step}/{name}", folder / name), sizes)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"files": sizes}, file)
            file.flush()
            write_object(f"{self.prefix}/{step}/{self._list}", file.name)

    def get(self, step: int, folder: Path) -> int:
        """Read the files of a whole step into a folder.

        Returns:
            How many processes wrote them.

        Raises:
            ValueError: some are not what was written.
            OSError: the store cannot be read.
        """
        names = self._by_step()[step]
        lists, wanted = _lists(names), dict[str, int]()
        for name in lists:
            wanted |= json.loads(bytes(read_object(f"{self.prefix}/{step}/{name}")))["files"]
        for name, size in wanted.items():
            if names.get(name) != size:
                raise ValueError(f"{self.prefix}/{step}/{name} has {names.get(name, 'no')} bytes of {size}")

        def fetch(name: str) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_object(f"{self.prefix}/{step}/{name}"))

        _each(fetch, wanted)
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


def _list_name(index: int, count: int) -> str:
    return f"whole.{index}-of-{count}.json"


def _is_list(name: str) -> bool:
    return name.startswith("whole.")


def _lists(names: Iterable[str]) -> list[str]:
    """The lists of a whole step; none: it is not whole."""
    there = set(filter(_is_list, names))
    for name in sorted(there):
        count = int(name.removesuffix(".json").rpartition("-")[2])
        wanted = [_list_name(i, count) for i in range(count)]
        if there.issuperset(wanted):
            return wanted
    return []


def _each(do: Callable[[str], Any], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="clip-train-bucket") as pool:
        for _ in pool.map(do, names):
            pass
