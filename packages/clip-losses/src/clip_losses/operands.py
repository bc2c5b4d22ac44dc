"""What the public losses accept: the arrays, checked, and the settings, settled before anything is traced."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

AxisName = str | tuple[str, ...]
Tile = int | tuple[int, int] | Literal["auto"]
Impl = Literal["auto", "dense", "tiled"]
Comm = Literal["ring", "all_gather"]
Reduction = Literal["mean", "sum"]


class Operands(NamedTuple):
    """The arrays of a loss; the first four may be differentiated."""

    image_embeds: Array
    text_embeds: Array
    logit_scale: Array
    logit_bias: Array | None
    image_ids: Array | None
    text_ids: Array | None
    mask: Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The static choices every loss shares; hashable, so that eager calls compile once."""

    tile: tuple[int, int]
    precision: Any
    reduction: Reduction
    axis_name: AxisName | None
    comm: Comm
    mesh: Mesh | None


def check(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike | None,
    image_ids: ArrayLike | None,
    text_ids: ArrayLike | None,
    mask: ArrayLike | None,
) -> Operands:
    """Return the operands as arrays, or raise a ``ValueError`` that names the shapes."""
    image, text = jnp.asarray(image_embeds), jnp.asarray(text_embeds)
    got = f"got image_embeds {_describe(image)} and text_embeds {_describe(text)}"
    if image.ndim != 2 or text.ndim != 2:
        raise ValueError(f"embeddings must be [b, e] matrices, {got}; flatten leading axes into b")
    if image.shape != text.shape:
        raise ValueError(f"row i of both sides is a pair, so the shapes must be equal, {got}")
    if image.dtype != text.dtype or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"embeddings must share one floating dtype, {got}; cast both to the same")
    scalars = []
    for name, value in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        scalar = None if value is None else jnp.asarray(value)
        if scalar is not None and scalar.shape != ():
            raise ValueError(f"{name} must be a scalar, got shape {list(scalar.shape)}; reshape it to ()")
        if scalar is not None and not jnp.issubdtype(scalar.dtype, jnp.floating):
            scalar = scalar.astype(float)
        scalars.append(scalar)
    vectors = []
    for name, value, kind in (
        ("image_ids", image_ids, jnp.integer),
        ("text_ids", text_ids, jnp.integer),
        ("mask", mask, jnp.bool_),
    ):
        vector = None if value is None else jnp.asarray(value)
        if vector is not None and (vector.shape != image.shape[:1] or not jnp.issubdtype(vector.dtype, kind)):
            wanted = "bool" if kind is jnp.bool_ else "integer"
            raise ValueError(f"{name} must be {wanted}[{image.shape[0]}], one per row, got {_describe(vector)}")
        vectors.append(vector)
    return Operands(image, text, *scalars, *vectors)


def settle(
    operands: Operands,
    *,
    tile: Tile,
    impl: Impl,
    precision: lax.PrecisionLike,
    reduction: Reduction,
    axis_name: AxisName | None,
    comm: Comm,
    mesh: Mesh | None,
    dense_rows: int,
    strips: bool = False,
) -> dict[str, Any]:
    """Resolve every ``auto`` and check the choices; the result is the fields of ``Settings``.

    Up to ``dense_rows`` rows on one device, one tile is as fast as many. ``strips`` asks for tiles as wide as the batch
    where that saves a matmul.
    """
    for name, value, known in (
        ("impl", impl, ("auto", "dense", "tiled")),
        ("comm", comm, ("ring", "all_gather")),
        ("reduction", reduction, ("mean", "sum")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    num_rows = operands.image_embeds.shape[0]
    if mesh is not None:
        num_rows //= _num_shards(mesh, axis_name, num_rows)
    elif axis_name is not None:
        try:
            lax.axis_size(axis_name)
        except NameError as error:
            raise ValueError(
                f"axis_name must name an axis of the surrounding shard_map or pmap, got {axis_name!r} ({error}); "
                "outside of one, call the sharded_ form with a mesh"
            ) from error
    if impl == "dense" and tile != "auto":
        raise ValueError(f"impl='dense' is one tile of the whole block, so tile must be 'auto', got {tile!r}")
    dense = impl == "dense" or (impl == "auto" and tile == "auto" and axis_name is None and num_rows <= dense_rows)
    if dense:
        shape = (num_rows, num_rows)
    elif tile == "auto":
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        shape = (1024, 512) if platform == "cpu" else (2048, 2048)
        if strips and axis_name is None and num_rows <= 65536:
            shape = (256, num_rows)
    else:
        shape = (tile, tile) if isinstance(tile, int) else tuple(tile)
        if len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"tile must be 'auto', a positive integer or a pair of them, got {tile!r}")
    # The default precision of accelerators rounds float32 to bfloat16 or TF32: at scale 100 that moves a logit by 0.3.
    precision = lax.Precision.HIGHEST if precision is None else precision
    return {
        "tile": shape,
        "precision": precision,
        "reduction": reduction,
        "axis_name": axis_name,
        "comm": comm,
        "mesh": mesh,
    }


def num_kept(operands: Operands, settings: Settings) -> Array:
    """How many rows of the global batch the mask keeps, at least 1, in the dtype of the sums."""
    dtype = jnp.promote_types(operands.image_embeds.dtype, jnp.float32)
    if operands.mask is None:
        num_devices = 1 if settings.axis_name is None else lax.axis_size(settings.axis_name)
        return jnp.asarray(operands.image_embeds.shape[0] * num_devices, dtype)
    # Summed as integers: float32 counts stop at 16.8 million.
    num = operands.mask.sum(dtype=jnp.int32)
    if settings.axis_name is not None:
        num = lax.psum(num, settings.axis_name)
    return jnp.maximum(num, 1).astype(dtype)


def _num_shards(mesh: Mesh, axis_name: AxisName | None, num_rows: int) -> int:
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    missing = [name for name in names if name not in mesh.shape]
    if missing or not names:
        raise ValueError(f"axis_name must name axes of the mesh, which has {dict(mesh.shape)}, got {axis_name!r}")
    num_shards = 1
    for name in names:
        num_shards *= mesh.shape[name]
    if num_rows % num_shards:
        raise ValueError(
            f"the b = {num_rows} rows must divide over the {num_shards} devices of {axis_name!r}; "
            "pad the batch and mask the padding"
        )
    return num_shards


def _describe(x: Array) -> str:
    return f"{x.dtype}{list(x.shape)}"
