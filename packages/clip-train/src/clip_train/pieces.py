"""Global arrays in pieces: what one process holds of them, taken to the host, and arrays made of the pieces of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

# (first, past the last) element along each dim.
Bounds = tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A box of a global array.

    Attributes:
        bounds: of the box.
        data: its elements, on the host.
    """

    bounds: Bounds
    data: np.ndarray


class Place(NamedTuple):
    """Where a box of a global array is kept, row by row.

    Attributes:
        bounds: of the box.
        part: of what is kept.
        offset: of its first byte in the part.
    """

    bounds: Bounds
    part: str
    offset: int


class Kept(NamedTuple):
    """A global array that is kept somewhere.

    Attributes:
        shape: of all of it.
        dtype: of its elements.
        places: of boxes that fill it without overlap.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    places: Sequence[Place]


def named_arrays(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of several trees by a name that says tree and path."""
    return {
        f"{tree}{jax.tree_util.keystr(path)}": leaf
        for tree, leaves in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
    }


def take_pieces(arrays: Mapping[str, jax.Array]) -> dict[str, list[Piece]]:
    """Copy to the host what is this process's to keep: of all processes' pieces, each element is in one.

    Rows that several processes have are divided among them.

    Args:
        arrays: global ones, by name.

    Returns:
        The pieces of each; they stay what they are when the arrays are donated.
    """
    mine = {name: list(_mine(array)) for name, array in arrays.items()}
    for shares in mine.values():
        for _, data, _ in shares:
            data.copy_to_host_async()
    return {
        name: [Piece(bounds, np.array(np.asarray(data)[rows])) for bounds, data, rows in shares]
        for name, shares in mine.items()
    }


def _mine(array: jax.Array) -> Iterator[tuple[Bounds, jax.Array, Any]]:
    """Bounds of each piece, the shard that it is in, and which rows of that."""
    holders: dict[Bounds, set[int]] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        holders.setdefault(_bounds(index, array.shape), set()).add(device.process_index)
    mine = {_bounds(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    for bounds, data in mine.items():
        processes = sorted(holders[bounds])
        place, count = processes.index(jax.process_index()), len(processes)
        if not bounds:
            if place == 0:
                yield bounds, data, ...
            continue
        (start, stop), *others = bounds
        low, high = ((stop - start) * i // count for i in (place, place + 1))
        if low < high:
            yield ((start + low, start + high), *others), data, slice(low, high)


def place_array(wanted: jax.ShapeDtypeStruct, kept: Kept, read: Callable[[str, int, int], Any]) -> jax.Array:
    """Make a global array of what is kept of it; each process reads what its devices are to hold.

    Args:
        wanted: with its sharding; without one it goes to this process's first device. Where it has more rows than are
            kept, they are zero; where fewer, the last are left.
        kept: the pieces.
        read: gives the bytes of a part: `(part, offset, length)`.

    Returns:
        The array, of the dtype that is wanted.
    """
    sharding: Any = wanted.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    boxes: dict[Bounds, np.ndarray] = {}
    for index in sharding.addressable_devices_indices_map(wanted.shape).values():
        bounds = _bounds(index, wanted.shape)
        if bounds not in boxes:
            boxes[bounds] = _box(bounds, kept, read).astype(wanted.dtype, copy=False)
    return jax.make_array_from_callback(wanted.shape, sharding, lambda index: boxes[_bounds(index or (), wanted.shape)])


def _box(bounds: Bounds, kept: Kept, read: Callable[[str, int, int], Any]) -> np.ndarray:
    box = np.zeros([stop - start for start, stop in bounds], kept.dtype)
    for place in kept.places:
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, place.bounds, strict=True)]
        if any(start >= stop for start, stop in common):
            continue
        shape = [stop - start for start, stop in place.bounds]
        first, length = 0, kept.dtype.itemsize * int(np.prod(shape))
        if shape:  # of the piece, whole rows alone
            row = length // shape[0]
            first, shape[0] = common[0][0] - place.bounds[0][0], common[0][1] - common[0][0]
            first, length = row * first, row * shape[0]
        rows = np.frombuffer(read(place.part, place.offset + first, length), kept.dtype).reshape(shape)
        columns = (slice(a - c, b - c) for (a, b), (c, _) in zip(common[1:], place.bounds[1:], strict=True))
        into = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, bounds, strict=True))
        box[into] = rows[(slice(None), *columns)] if shape else rows
    return box


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
