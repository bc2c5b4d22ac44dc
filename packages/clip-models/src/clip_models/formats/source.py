"""Where our arrays are in someone else's file: names and layouts, said once and used in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One of their tensors, or a part of it, as it stands to an array of ours.

    Ours, without its dim of layers where their name counts the layers, is split into the dims ``split``, these are put
    in ``order``, and ``ones`` dims of size 1 are put before: that is theirs, or part i of n of its first dim.

    Args:
        name: of their tensor, with ``{layer}`` where each layer has its own and ours is stacked.
        split: dims of ours, taken apart. None: as they are.
        order: of the split dims in theirs. None: the same.
        ones: leading dims of size 1 in theirs.
        part: (i, n). None: all of it.
    """

    name: str
    split: Shape | None = None
    order: tuple[int, ...] | None = None
    ones: int = 0
    part: tuple[int, int] | None = None

    @property
    def is_stacked(self) -> bool:
        """Whether ours has a dim of layers that theirs has not."""
        return "{layer}" in self.name

    def names(self, shape: Shape) -> list[str]:
        """The names of the tensors that an array of ours, of the given shape, comes from; one per layer, or one."""
        return [self.name.format(layer=layer) for layer in range(shape[0])] if self.is_stacked else [self.name]

    def their_shape(self, shape: Shape) -> Shape:
        """The shape of their whole tensor.

        Args:
            shape: of ours, with its dim of layers.
        """
        dims = self._ordered(shape[1:] if self.is_stacked else shape)
        if self.part is not None:
            dims = (dims[0] * self.part[1], *dims[1:])
        return (1,) * self.ones + dims

    def to_ours(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Takes ours out of their tensor, as a view where the layouts allow.

        Args:
            tensor: theirs, whole.
            shape: of ours, with its dim of layers.

        Returns:
            Ours, of one layer where theirs are one per layer.
        """
        shape = shape[1:] if self.is_stacked else shape
        dims = self._ordered(shape)
        if self.part is not None:
            tensor = tensor.reshape(self.part[1], *dims)[self.part[0]]
        tensor = tensor.reshape(dims)
        if self.order is not None:
            tensor = tensor.transpose(np.argsort(self.order))
        return tensor.reshape(shape)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Undoes :meth:`to_ours`.

        Args:
            array: ours, of one layer where theirs are one per layer.

        Returns:
            Their tensor, or the part of it that is ours.
        """
        array = array if self.split is None else array.reshape(self.split)
        array = array if self.order is None else array.transpose(self.order)
        return array.reshape((1,) * self.ones + array.shape)

    def _ordered(self, shape: Shape) -> Shape:
        dims = self.split or shape
        return dims if self.order is None else tuple(dims[i] for i in self.order)


Sources = Mapping[str, Source]
"""The source of each of our arrays, by its flat name."""

Pairs = Iterator[tuple[str, Source]]
"""Our flat names and their sources, as parts of a model yield them."""


def torch_linear(ours: str, theirs: str, *, bias: bool = True, part: tuple[int, int] | None = None) -> Pairs:
    """Yields the sources of a linear layer of PyTorch's, whose kernel is [out, in]."""
    yield f"{ours}/kernel", Source(f"{theirs}.weight", order=(1, 0), part=part)
    if bias:
        yield f"{ours}/bias", Source(f"{theirs}.bias", part=part)


def torch_norm(ours: str, theirs: str) -> Pairs:
    """Yields the sources of a LayerNorm of PyTorch's."""
    yield f"{ours}/scale", Source(f"{theirs}.weight")
    yield f"{ours}/bias", Source(f"{theirs}.bias")


def torch_attention(ours: str, theirs: str) -> Pairs:
    """Yields the sources of PyTorch's MultiheadAttention, which keeps queries, keys and values in one tensor."""
    for third, part in enumerate(("query", "key", "value")):
        yield f"{ours}/{part}/kernel", Source(f"{theirs}.in_proj_weight", order=(1, 0), part=(third, 3))
        yield f"{ours}/{part}/bias", Source(f"{theirs}.in_proj_bias", part=(third, 3))
    yield from torch_linear(f"{ours}/out", f"{theirs}.out_proj")


def torch_patches(ours: str, theirs: str, *, patch_size: int, width: int, bias: bool) -> Pairs:
    """Yields the sources of a patch projection that PyTorch has as a convolution, [d, 3, p, p]."""
    split = (patch_size, patch_size, 3, width)
    yield f"{ours}/kernel", Source(f"{theirs}.weight", split=split, order=(3, 2, 0, 1))
    if bias:
        yield f"{ours}/bias", Source(f"{theirs}.bias")
