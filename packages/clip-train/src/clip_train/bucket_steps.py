"""Checkpoints in a bucket: each process sends its pieces of the arrays in large parts, then a list of what it sent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from clip_data.buckets import delete_object, list_below, read_object, write_object
from clip_train.pieces import Kept, Piece, Place, named_arrays, place_array, take_pieces

_AT_ONCE = 8
_PART_BYTES = 64 << 20

A = TypeVar("A")
B = TypeVar("B")


class BucketSteps:
    """The checkpoints below one prefix: of process I of N `STEP/I/PART` and a list, `STEP/whole.I-of-N.START.json`.

    A bucket has no folder to rename, and takes a while for each object, however small. Each process sends its pieces
    in parts of 64 MiB or more, then the list of them: a step is whole where all N lists of one start of the run are.
    Nothing waits for another process.

    Args:
        prefix: `gs://` or `s3://`.
        keep: how many of the newest stay.
        process_index: which process this is.
        process_count: of how many.
        start: a name of this start of the run, the same in all its processes: what one start left unfinished is not
            completed by another.
    """

    def __init__(
        self, prefix: str, *, keep: int = 3, process_index: int = 0, process_count: int = 1, start: str = "0"
    ) -> None:
        self.prefix = prefix.rstrip("/")
        self._keep, self._index = keep, process_index
        self._list = _list_name(process_index, process_count, start)
        self._background = ThreadPoolExecutor(1, "clip-train-upload")
        self._under_way: Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps that are whole, in order.

        Raises:
            OSError: the store cannot be asked.
        """
        return [step for step, names in self._by_step().items() if _lists(names)]

    def save(self, step: int, trees: Mapping[str, Any], progress: Any, *, before: Callable[[], None]) -> None:
        """Start to send; returns once the arrays may be donated.

        Args:
            step: updates made.
            trees: of global arrays.
            progress: JSON values, the same in all processes.
            before: called in the background before the step counts.
        """
        arrays = named_arrays(trees)
        about = {name: {"shape": array.shape, "dtype": str(array.dtype)} for name, array in arrays.items()}
        listed = {"progress": progress, "arrays": about}
        self._under_way = self._background.submit(self._send, step, take_pieces(arrays), listed, before)

    def _send(
        self, step: int, pieces: dict[str, list[Piece]], listed: dict[str, Any], before: Callable[[], None]
    ) -> None:
        before()
        parts, places = _parts(pieces)
        folder = f"{self.prefix}/{step}"
        _each(lambda item: write_object(f"{folder}/{self._index}/{item[0]}", item[1]), parts.items())
        listed["parts"] = {part: sum(data.nbytes for data in datas) for part, datas in parts.items()}
        for name, array in listed["arrays"].items():
            array["places"] = places.get(name, [])
        write_object(f"{folder}/{self._list}", [memoryview(json.dumps(listed).encode())])
        # Whoever is the last of the processes sees that the step is whole.
        found = self._by_step()
        kept = [step for step, names in found.items() if _lists(names)][-self._keep :]
        for old, names in found.items():
            if kept and old < kept[0]:
                self._delete(old, filter(_is_list, names))
                self._delete(old, [name for name in names if not _is_list(name)])

    def wait(self) -> None:
        """Return once what was started is in the bucket.

        Raises:
            OSError: it could not be written.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What a step holds, and its `progress`.

        Args:
            step: a whole one.
            wanted: trees of shapes, dtypes and shardings. Of the optimizer's state the number of rows may be another.

        Raises:
            ValueError: something is not what was written, or not there.
            OSError: of the number EIO: the store cannot be read, which says nothing of the step.
        """
        try:
            return self._read(step, wanted)
        except OSError as error:
            raise OSError(errno.EIO, str(error)) from error

    def _read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        there = self._by_step().get(step, {})
        lists = [json.loads(bytes(read_object(f"{self.prefix}/{step}/{name}"))) for name in _lists(there)]
        if not lists:
            raise ValueError(f"{self.prefix}/{step} is no whole checkpoint")
        for index, listed in enumerate(lists):
            for part, size in listed["parts"].items():
                if there.get(f"{index}/{part}") != size:
                    has = there.get(f"{index}/{part}", "no")
                    raise ValueError(f"{self.prefix}/{step}/{index}/{part} has {has} bytes of {size}")
        kept = _kept(lists)

        def read(part: str, offset: int, length: int) -> memoryview:
            return read_object(f"{self.prefix}/{step}/{part}", offset, length)

        def place(item: tuple[str, Any]) -> jax.Array:
            name, leaf = item
            return place_array(leaf, _fitting(name, leaf, kept), read)

        arrays = named_arrays(wanted)
        placed = iter(_each(place, arrays.items()))
        trees = {tree: jax.tree.map(lambda _: next(placed), leaves) for tree, leaves in wanted.items()}
        return {**trees, "progress": lists[0]["progress"]}

    def put_aside(self, steps: Iterable[int], *, newest: int) -> None:
        """Have no step after the newest count; what is there of them goes when they are pruned."""
        for step, names in self._by_step().items():
            if step > newest:
                self._delete(step, filter(_is_list, names))

    def forget(self, step: int | None) -> None:
        """What could not be written does not count as it is."""

    def close(self) -> None:
        """Wait, and end."""
        self._background.shutdown()

    def _delete(self, step: int, names: Iterable[str]) -> None:
        _each(lambda name: delete_object(f"{self.prefix}/{step}/{name}"), names)

    def _by_step(self) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = {}
        for name, size in list_below(self.prefix).items():
            step, _, inner = name.partition("/")
            if step.isdigit() and inner:
                found.setdefault(int(step), {})[inner] = size
        return dict(sorted(found.items()))


def _parts(pieces: Mapping[str, list[Piece]]) -> tuple[dict[str, list[memoryview]], dict[str, list[Any]]]:
    """The bytes of each part, piece after piece, and the bounds, part and offset of the pieces of each array."""
    parts: dict[str, list[memoryview]] = {}
    places: dict[str, list[Any]] = {}
    size = _PART_BYTES
    for name, boxes in pieces.items():
        for bounds, data in boxes:
            if size >= _PART_BYTES:
                parts[f"{len(parts):05d}"], size = [], 0
            part = f"{len(parts) - 1:05d}"
            parts[part].append(data.reshape(-1).view(np.uint8).data)
            places.setdefault(name, []).append([bounds, part, size])
            size += data.nbytes
    return parts, places


def _kept(lists: list[dict[str, Any]]) -> dict[str, Kept]:
    """The arrays that the processes' lists tell of together.

    Raises:
        ValueError: the pieces of one do not fill it.
    """
    kept: dict[str, Kept] = {}
    for index, listed in enumerate(lists):
        for name, array in listed["arrays"].items():
            empty = Kept(tuple(array["shape"]), jnp.dtype(array["dtype"]), [])
            places = [
                Place(tuple((start, stop) for start, stop in bounds), f"{index}/{part}", offset)
                for bounds, part, offset in array["places"]
            ]
            kept[name] = empty._replace(places=[*kept.get(name, empty).places, *places])
    for name, array in kept.items():
        sizes = [int(np.prod([stop - start for start, stop in place.bounds])) for place in array.places]
        if sum(sizes) != int(np.prod(array.shape)):
            raise ValueError(f"{sum(sizes)} elements of {name} are there, of {int(np.prod(array.shape))}")
    return kept


def _fitting(name: str, wanted: Any, kept: Mapping[str, Kept]) -> Kept:
    if name not in kept:
        raise ValueError(f"{name} is not in it")
    shape = kept[name].shape
    # On other devices another number of Shampoo's blocks fills up; the seal makes sure that nothing else differs.
    is_filled = name.startswith("opt_state") and len(shape) == len(wanted.shape) > 0 and shape[1:] == wanted.shape[1:]
    if shape != wanted.shape and not is_filled:
        raise ValueError(f"{name} has the shape {shape} there, {wanted.shape} here")
    return kept[name]


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


def _each(do: Callable[[A], B], items: Iterable[A]) -> list[B]:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="clip-train-bucket") as pool:
        return list(pool.map(do, items))
