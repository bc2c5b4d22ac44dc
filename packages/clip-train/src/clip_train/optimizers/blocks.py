"""Parameters cut into blocks, and the blocks of one shape stacked, so that each shape is one batched computation.

A parameter `[d1, d2]` becomes blocks of at most `block_size` on each side: all full ones together, then the remainders.
A parameter of stacked layers `[layers, d1, d2]` is cut layer by layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clip_train.optimizers.names import name_of


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive blocks of one size along one dim: `num` of `size`, from `start`."""

    start: int
    num: int
    size: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """The blocks of one shape in one parameter.

    Attributes:
        name: of the parameter.
        num_layers: stacked along the parameter's first axis, or `None`.
        runs: one per dim of a layer.
    """

    name: str
    num_layers: int | None
    runs: tuple[Run, ...]

    @property
    def num_blocks(self) -> int:
        """How many."""
        return (self.num_layers or 1) * math.prod(run.num for run in self.runs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each block."""
        return tuple(run.size for run in self.runs)

    def cut(self, array: jax.Array) -> jax.Array:
        """The blocks `[num_blocks, *shape]` of a whole parameter."""
        layers = array if self.num_layers is not None else array[None]
        part = layers[(slice(None), *(slice(run.start, run.start + run.num * run.size) for run in self.runs))]
        split = part.reshape(len(layers), *itertools.chain(*((run.num, run.size) for run in self.runs)))
        order = (0, *range(1, split.ndim, 2), *range(2, split.ndim, 2))
        return split.transpose(order).reshape(-1, *self.shape)

    def join(self, blocks: jax.Array) -> jax.Array:
        """The part of each layer `[layers, …]` that the blocks `[num_blocks, *shape]` are."""
        rank, layers = len(self.runs), self.num_layers or 1
        split = blocks.reshape(layers, *(run.num for run in self.runs), *self.shape)
        order = (0, *itertools.chain(*((1 + dim, 1 + rank + dim) for dim in range(rank))))
        return split.transpose(order).reshape(layers, *(run.num * run.size for run in self.runs))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tree of parameters is cut.

    Attributes:
        groups: the pieces of each shape of block, by a key such as `"512x256"`.
    """

    groups: dict[str, tuple[Piece, ...]]

    @property
    def names(self) -> frozenset[str]:
        """Of the parameters that are cut at all."""
        return frozenset(piece.name for pieces in self.groups.values() for piece in pieces)

    def cut(self, arrays: Mapping[str, jax.Array], *, multiple_of: int = 1) -> dict[str, jax.Array]:
        """All blocks by shape, `[n, *shape]`; zeros fill n up to a multiple."""
        stacked = {}
        for key, pieces in self.groups.items():
            blocks = jnp.concatenate([piece.cut(arrays[piece.name]) for piece in pieces])
            fill = -len(blocks) % multiple_of
            stacked[key] = jnp.pad(blocks, ((0, fill), *((0, 0) for _ in blocks.shape[1:])))
        return stacked

    def join(self, blocks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The inverse of `cut`: whole parameters by name."""
        parts: dict[str, dict[tuple[int, ...], jax.Array]] = {}
        stacked = {}
        for key, pieces in self.groups.items():
            first = 0
            for piece in pieces:
                part = piece.join(blocks[key][first : first + piece.num_blocks])
                first += piece.num_blocks
                parts.setdefault(piece.name, {})[tuple(run.start for run in piece.runs)] = part
                stacked[piece.name] = piece.num_layers is not None
        return {name: _join(parts[name]) if stacked[name] else _join(parts[name])[0] for name in parts}

    def num_blocks(self, key: str) -> int:
        """How many blocks of a shape there are, without what fills up."""
        return sum(piece.num_blocks for piece in self.groups[key])


def layout(
    params: Any,
    *,
    block_size: Callable[[str], int],
    is_stacked: Callable[[str], bool],
    skips: Callable[[tuple[int, ...]], bool],
) -> Layout:
    """Say how parameters are cut.

    Args:
        params: a tree of arrays, or of their shapes.
        block_size: the longest side of a block, by the parameter's name.
        is_stacked: whether the first axis of a parameter is one of layers.
        skips: whether a layer of this shape is left out.
    """
    groups: dict[str, list[Piece]] = {}
    for path, param in jax.tree_util.tree_leaves_with_path(params):
        name = name_of(path)
        num_layers = param.shape[0] if is_stacked(name) else None
        shape = param.shape if num_layers is None else param.shape[1:]
        if skips(shape) or not shape:
            continue
        for runs in itertools.product(*(_runs(dim, block_size(name)) for dim in shape)):
            piece = Piece(name, num_layers, runs)
            groups.setdefault("x".join(map(str, piece.shape)), []).append(piece)
    return Layout({key: tuple(pieces) for key, pieces in sorted(groups.items())})


def _runs(dim: int, block_size: int) -> list[Run]:
    size = min(dim, block_size)
    full, rest = divmod(dim, size)
    return [Run(0, full, size)] + ([Run(full * size, 1, rest)] if rest else [])


def _join(parts: dict[tuple[int, ...], jax.Array]) -> jax.Array:
    """Concatenate parts by where they start, the last dim first; the axis before the dims is of layers."""
    rank = len(next(iter(parts)))
    for dim in reversed(range(rank)):
        rows: dict[tuple[int, ...], list[jax.Array]] = {}
        for start in sorted(parts):
            rows.setdefault(start[:dim], []).append(parts[start])
        parts = {start: jnp.concatenate(row, axis=1 + dim) for start, row in rows.items()}
    return parts[()]
