"""From the names of an array's axes to its `NamedSharding`: the partition rules and the named strategies.

A model names each axis of each parameter (`("embed", "mlp")`); a rule says which mesh axes a name may be divided over.
Nothing here knows a model: any tree of axis names will do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """An ordered list of `(logical axis, mesh axes)`; earlier rules choose first.

    In one array a mesh axis divides one logical axis only: the first rule whose logical axis is present, and whose mesh
    axes are still free and divide it, takes them. A logical axis without a rule is never divided.

    Attributes:
        rules: the pairs, e.g. `(("mlp", "fsdp"), ("embed", "fsdp"))`.
    """

    rules: tuple[tuple[str, MeshAxes], ...] = ()

    @property
    def mesh_axes(self) -> frozenset[str]:
        """Every mesh axis that some rule names."""
        return frozenset(name for _, axes in self.rules for name in _names(axes))

    def spec(self, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, *, name: str = "array") -> PartitionSpec:
        """The partition of one array.

        Args:
            axes: the logical name of each dimension.
            shape: the sizes of the dimensions.
            mesh: where the array will live.
            name: what errors call the array.

        Raises:
            ValueError: `axes` and `shape` differ in length, a rule names an axis the mesh lacks, or rules apply to the
                array and none of them divides it.
        """
        if len(axes) != len(shape):
            raise ValueError(f"{name} has {len(shape)} dimensions {shape} but {len(axes)} axis names {axes}")
        spec: list[MeshAxes | None] = [None] * len(axes)
        used: set[str] = set()
        indivisible = []
        for logical, mesh_axes in self.rules:
            names = _names(mesh_axes)
            if missing := [axis for axis in names if axis not in mesh.shape]:
                raise ValueError(f"rule {(logical, mesh_axes)} names {missing}; the mesh has axes {tuple(mesh.shape)}")
            size = math.prod(mesh.shape[axis] for axis in names)
            if size == 1 or logical not in axes or used & set(names):
                continue
            where = axes.index(logical)
            if spec[where] is not None:
                continue
            if shape[where] % size:
                indivisible.append((logical, shape[where], mesh_axes, size))
                continue
            spec[where] = mesh_axes
            used |= set(names)
        if indivisible and not used:
            tried = "; ".join(
                f"{axis!r} of size {n} over {over!r} of size {size}" for axis, n, over, size in indivisible
            )
            divisors = ", ".join(str(math.gcd(n, size)) for _, n, _, size in indivisible)
            raise ValueError(
                f"{name} with shape {shape} and axes {axes} cannot be divided: {tried}. "
                f"Mesh sizes that would divide it: {divisors}; or resize the model, or use strategy 'replicated'."
            )
        return PartitionSpec(*spec)


# `fsdp` divides each parameter once, along whichever of its axes comes first here: wide axes before narrow ones.
_STRATEGIES: Mapping[str, Rules] = {
    "replicated": Rules(),
    "fsdp": Rules((("mlp", "fsdp"), ("vocab", "fsdp"), ("embed", "fsdp"), ("heads", "fsdp"), ("projection", "fsdp"))),
}


def strategies() -> tuple[str, ...]:
    """The names that `strategy` knows."""
    return tuple(_STRATEGIES)


def strategy(name: str) -> Rules:
    """A named set of rules: `replicated` (every device holds all) or `fsdp` (every parameter divided over `fsdp`).

    Raises:
        ValueError: the name is unknown; the nearest valid one is suggested.
    """
    if name in _STRATEGIES:
        return _STRATEGIES[name]
    near = difflib.get_close_matches(name, _STRATEGIES, n=1, cutoff=0.0)[0]
    raise ValueError(f"a sharding strategy is one of {', '.join(_STRATEGIES)}; got {name!r}. Did you mean {near!r}?")


def shardings(rules: Rules, mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """The sharding of every array of a tree.

    Args:
        rules: which logical axis goes over which mesh axes.
        mesh: where the arrays will live.
        axes: a tree with, at each array's place, the tuple of its axis names.
        shapes: the same tree with arrays or `jax.ShapeDtypeStruct` at the leaves.

    Returns:
        The same tree of `jax.sharding.NamedSharding`, ready for `jax.jit`'s `out_shardings` or `jax.device_put`.

    Raises:
        ValueError: an array cannot be divided as the rules ask; the message names the array and what would divide it.
    """

    def place(path: Any, shape: Any, names: tuple[str, ...]) -> NamedSharding:
        spec = rules.spec(tuple(names), tuple(shape.shape), mesh, name=jax.tree_util.keystr(path))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)
