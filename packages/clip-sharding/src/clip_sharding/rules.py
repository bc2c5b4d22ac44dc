"""From the names of an array's axes to its `NamedSharding`: the partition rules and the named strategies.

A model names each axis of each parameter (`("embed", "mlp")`); a rule says which mesh axes a name may be divided over.
Nothing here knows a model: any tree of axis names will do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_sharding.batch import BATCH_AXES

MeshAxes = str | tuple[str, ...]


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class Rules:
    """An ordered list of `(logical axis, mesh axes)`; earlier rules choose first.

    In one array a mesh axis divides one logical axis only: the first rule whose logical axis is present, and whose mesh
    axes are still free and divide it, takes them. A logical axis may have several rules, tried in their order; one
    without a rule is never divided.

    Attributes:
        rules: the pairs, e.g. `(("mlp", "fsdp"), ("embed", "fsdp"))`.
    """

    rules: tuple[tuple[str, MeshAxes], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a rule over no mesh axis, or over one twice."""
        for rule in self.rules:
            names = _names(rule[1])
            if not names or len(set(names)) < len(names):
                raise ValueError(
                    f"a rule is a logical axis and one mesh axis or more, each once; got {rule}; "
                    "an axis without a rule stays whole"
                )

    def check(self, mesh: Mesh, names: Collection[str] | None = None) -> None:
        """Refuse rules that this mesh cannot follow, or that leave devices of it to do what others do.

        Args:
            mesh: where arrays will live.
            names: the logical axes that there are; a rule for another would do nothing. None: not known.

        Raises:
            ValueError: a rule names an axis that the mesh lacks or a logical axis that there is not, or divides over
                axes that span one of its devices; or no rule divides over a mesh axis that does not divide the batch.
        """
        for logical, _ in self.rules:
            if logical == "batch":
                raise ValueError("'batch' is divided over data × fsdp without a rule, and over nothing else; got one")
            if names is not None and logical not in names:
                near = difflib.get_close_matches(logical, names, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"no array has an axis {logical!r}; there are {', '.join(sorted(names))}. Did you mean {near!r}?"
                )
        for logical, mesh_axes in self.rules:
            names = _names_on(mesh, logical, mesh_axes)
            if mesh.size > 1 and math.prod(mesh.shape[axis] for axis in names) == 1:
                over = " × ".join(names)
                raise ValueError(
                    f"{logical!r} is divided over the mesh axis {over}, which spans 1 of {mesh.size} devices; "
                    f"give {names[-1]!r} more devices in mesh, or take a strategy without it"
                )
        divided = {axis for _, axes in self.rules for axis in _names(axes)} | set(BATCH_AXES)
        if idle := [axis for axis, size in mesh.shape.items() if size > 1 and axis not in divided]:
            raise ValueError(
                f"nothing is divided over the mesh axis {idle[0]} of {mesh.shape[idle[0]]} devices, all of which would "
                f"do the same; leave {idle[0]!r} out of mesh, or divide something over it"
            )

    def spec(self, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, *, name: str = "array") -> PartitionSpec:
        """The partition of one array.

        Args:
            axes: the logical name of each dimension.
            shape: the sizes of the dimensions.
            mesh: where the array will live.
            name: what errors call the array.

        Raises:
            ValueError: `axes` and `shape` differ in length, a rule names an axis the mesh lacks, or a mesh axis that
                rules offer to the array divides none of its dimensions.
        """
        spec, fault = self._divide(axes, shape, mesh, name)
        if fault is not None:
            raise ValueError(_explained([fault]))
        return spec

    def _divide(
        self, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, name: str
    ) -> tuple[PartitionSpec, _Fault | None]:
        """The partition of one array, and what of it cannot be."""
        if len(axes) != len(shape):
            raise ValueError(f"{name} has {len(shape)} dimensions {shape} but {len(axes)} axis names {axes}")
        spec: list[MeshAxes | None] = [None] * len(axes)
        used: set[str] = set()
        failed = []
        for logical, mesh_axes in self.rules:
            names = _names_on(mesh, logical, mesh_axes)
            size = math.prod(mesh.shape[axis] for axis in names)
            if size == 1 or logical not in axes or used & set(names):
                continue
            where = axes.index(logical)
            if spec[where] is not None:
                continue
            if shape[where] % size:
                failed.append((logical, shape[where], names, size))
                continue
            spec[where] = mesh_axes
            used |= set(names)
        failed = [tried for tried in failed if not used & set(tried[2])]
        return PartitionSpec(*spec), _Fault(name, shape, axes, tuple(failed)) if failed else None


@dataclasses.dataclass(frozen=True)
class _Fault:
    """An array that rules would divide and cannot.

    Attributes:
        name: of the array.
        shape: its own.
        axes: its logical ones.
        tried: the logical axes, their sizes, over which mesh axes, and how many devices these span.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    tried: tuple[tuple[str, int, tuple[str, ...], int], ...]


def _explained(faults: Sequence[_Fault]) -> str:
    """The first in full, how many others there are, and what would divide them all."""
    first = faults[0]
    tried = "; ".join(
        f"{axis!r} of size {n} over {' × '.join(names)} of size {size}" for axis, n, names, size in first.tried
    )
    same = [fault for fault in faults if {names for _, _, names, _ in fault.tried} == {first.tried[0][2]}]
    others = f", nor can {len(faults) - 1} others" if len(faults) > 1 else ""
    _, n, names, size = first.tried[0]
    would = _largest_divisor(size, [[n for _, n, _, _ in fault.tried] for fault in same or [first]])
    return (
        f"{first.name} with shape {first.shape} and axes {first.axes} cannot be divided: {tried}{others}. "
        f"{' × '.join(names)} of size {would} would divide {'them all' if len(faults) > 1 else 'it'}, and so would "
        f"an array of size {n // size * size or size} or {-(-n // size) * size} there; or write rules that leave it "
        "whole."
    )


def _largest_divisor(size: int, arrays: Iterable[Sequence[int]]) -> int:
    """Of a number of devices, the largest part that divides one dimension at least of each array."""
    arrays = list(arrays)
    parts = (d for d in range(size, 0, -1) if size % d == 0)
    return next(d for d in parts if all(any(n % d == 0 for n in dims) for dims in arrays))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """Over how many mesh axes activations and parameters are divided, in the words of T5X and clip-jax.

    The batch and, with 2 of `parameter_dims`, the parameters' `embed` are divided over `data` (and `fsdp`, where the
    mesh has it); `mlp`, `heads`, `vocab` and `projection` over `model`, and with 2 of `activation_dims` so is `embed`
    where nothing else is: of the activations between the layers, biases and patch embeddings.

    Attributes:
        activation_dims: 1 or 2.
        parameter_dims: 1 or 2.
    """

    activation_dims: Literal[1, 2] = 1
    parameter_dims: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuse other numbers."""
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) not in (1, 2):
                raise ValueError(f"{field.name} is 1 or 2; got {value}")

    @property
    def rules(self) -> Rules:
        """What it stands for."""
        embed: list[tuple[str, MeshAxes]] = []
        if self.activation_dims == 2:
            embed.append(("embed", "model"))
        if self.parameter_dims == 2:
            embed.append(("embed", BATCH_AXES))
        return Rules((*_TENSOR, ("projection", "model"), *embed))


_TENSOR = (("mlp", "model"), ("heads", "model"), ("vocab", "model"))
# `fsdp` divides each parameter once, along whichever of its axes comes first here: wide axes before narrow ones.
_FSDP = (("mlp", "fsdp"), ("vocab", "fsdp"), ("embed", "fsdp"), ("heads", "fsdp"), ("projection", "fsdp"))
_STRATEGIES: Mapping[str, Rules] = {
    "replicated": Rules(),
    "fsdp": Rules(_FSDP),
    "tensor": Rules(_TENSOR),
    "fsdp+tensor": Rules((*_TENSOR, *_FSDP)),
}


def strategies() -> tuple[str, ...]:
    """The names that `strategy` knows."""
    return tuple(_STRATEGIES)


def strategy(given: str | PartitionConfig | Iterable[tuple[str, MeshAxes]]) -> Rules:
    """The rules that a config asks for.

    Args:
        given: a name: `replicated` (every device holds all), `fsdp` (every parameter divided over `fsdp`), `tensor`
            (the inside of each layer and the vocabulary divided over `model`) or `fsdp+tensor`; a `PartitionConfig`; or
            the rules themselves.

    Raises:
        ValueError: the name is unknown; the nearest valid one is suggested.
    """
    if isinstance(given, PartitionConfig):
        return given.rules
    if not isinstance(given, str):
        return Rules(tuple((logical, axes if isinstance(axes, str) else tuple(axes)) for logical, axes in given))
    if given in _STRATEGIES:
        return _STRATEGIES[given]
    near = difflib.get_close_matches(given, _STRATEGIES, n=1, cutoff=0.0)[0]
    raise ValueError(f"a sharding strategy is one of {', '.join(_STRATEGIES)}; got {given!r}. Did you mean {near!r}?")


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
        ValueError: arrays cannot be divided as the rules ask; the message names the first, and what would divide all.
    """
    faults: list[_Fault] = []

    def place(path: Any, shape: Any, names: tuple[str, ...]) -> NamedSharding:
        spec, fault = rules._divide(tuple(names), tuple(shape.shape), mesh, jax.tree_util.keystr(path))
        if fault is not None:
            faults.append(fault)
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, shapes, axes)
    if faults:
        raise ValueError(_explained(faults))
    return placed


def dividing_size(rules: Rules, axis: str, size: int, axes: Any, shapes: Any) -> int:
    """Over how many devices a mesh axis may divide all arrays of a tree that the rules divide over it alone.

    Args:
        rules: which logical axis goes over which mesh axes.
        axis: of the mesh.
        size: devices that there are; the result divides it.
        axes: a tree with, at each array's place, the tuple of its axis names.
        shapes: the same tree with arrays or `jax.ShapeDtypeStruct` at the leaves.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> bias = jax.ShapeDtypeStruct((4304,), jnp.float32)
        >>> dividing_size(strategy("fsdp"), "fsdp", 256, {"bias": ("mlp",)}, {"bias": bias})
        16
    """
    logical = {name for name, mesh_axes in rules.rules if _names(mesh_axes) == (axis,)}
    arrays = []
    for shape, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=_is_names), strict=True):
        if dims := [n for n, name in zip(shape.shape, names, strict=True) if name in logical]:
            arrays.append(dims)
    return _largest_divisor(size, arrays)


def constraint(rules: Rules, mesh: Mesh) -> Callable[[jax.Array, tuple[str, ...]], jax.Array]:
    """A function that holds arrays where the rules want them while they are used, to be called inside `jax.jit`.

    In use, `data` and `fsdp` divide the logical axis `batch`, as `to_global` does, and nothing else: a parameter that
    is stored divided over them is gathered. Its gradient goes back to where it is stored.

    Args:
        rules: of the parameters.
        mesh: where all lives.

    Returns:
        `(x, axis names) -> x`, for activations and parameters.
    """
    batch = ("batch", BATCH_AXES)
    stored = Rules((batch, *rules.rules))
    used = Rules((batch, *(rule for rule in rules.rules if not set(_names(rule[1])) & set(BATCH_AXES))))

    def constrain(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        if mesh.size == 1:
            return x
        name = "an activation" if "batch" in axes else "a weight in use"
        there, back = (NamedSharding(mesh, which.spec(axes, x.shape, mesh, name=name)) for which in (used, stored))

        @jax.custom_vjp
        def place(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, there)

        def place_gradient(_: None, grad: jax.Array) -> tuple[jax.Array]:
            # In two moves: in one, the partitioner divides what made the gradient as the result is, at any cost.
            return (jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(grad, there), back),)

        place.defvjp(lambda x: (place(x), None), place_gradient)
        return place(x)

    return constrain


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple)


def _names_on(mesh: Mesh, logical: str, mesh_axes: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of a rule, all of which the mesh must have."""
    names = _names(mesh_axes)
    if missing := [axis for axis in names if axis not in mesh.shape]:
        raise ValueError(f"rule {(logical, mesh_axes)} names {missing}; the mesh has axes {tuple(mesh.shape)}")
    return names
