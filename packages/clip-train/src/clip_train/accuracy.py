"""In-batch accuracy: how often a picture's own text is the nearest of the batch, and the other way round.

The b×b matrix is visited in tiles and never kept: memory is linear in the batch, as the losses' is. Over several
devices the texts travel around a ring, so that each device holds its own rows and one block of another's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from clip_sharding import BATCH_AXES

# Elements of a tile of similarities: 16 MiB in float32.
_TILE = 2**22


def in_batch_accuracy(image_embeds: Array, text_embeds: Array, *, mesh: Mesh | None = None) -> dict[str, Array]:
    """The share of pairs of which nothing else in the batch is nearer, in both directions; no gradient passes.

    A text that stands twice in the batch is as near as itself, and no mistake.

    Args:
        image_embeds: `[b, e]`, unit norm.
        text_embeds: `[b, e]`, likewise; row i belongs to row i.
        mesh: with several devices, along whose batch axes the rows are split.

    Returns:
        `image_to_text_accuracy` and `text_to_image_accuracy`, float32 scalars.

    Example:
        >>> images, texts = jnp.eye(3), jnp.eye(3).at[2].set(jnp.array([0.8, 0.0, 0.6]))
        >>> {name: round(float(share), 3) for name, share in in_batch_accuracy(images, texts).items()}
        {'image_to_text_accuracy': 1.0, 'text_to_image_accuracy': 0.667}
    """
    pairs = lax.stop_gradient((image_embeds, text_embeds))
    if mesh is None or mesh.size == 1:
        hits = _hits(*pairs)
    else:
        hits = jax.shard_map(
            lambda images, texts: lax.psum(_hits(images, texts, BATCH_AXES), BATCH_AXES),
            mesh=mesh,
            in_specs=PartitionSpec(BATCH_AXES),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(*pairs)
    share = hits / image_embeds.shape[0]
    return {"image_to_text_accuracy": share[0], "text_to_image_accuracy": share[1]}


def _hits(images: Array, texts: Array, axis_name: tuple[str, ...] | None = None) -> Array:
    """How many of this device's pictures, and of its texts, find their own: float32 `[2]`."""
    num_devices = 1 if axis_name is None else lax.axis_size(axis_name)
    num = images.shape[0]
    none = jnp.full((num,), -jnp.inf)
    own, row_best, col_best = _visit(images, texts, none, none, none, is_own=True)
    if num_devices > 1:
        around = [(device, (device - 1) % num_devices) for device in range(num_devices)]

        def hop(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            row_best, texts, col_best = carry
            texts, col_best = lax.ppermute((texts, col_best), axis_name, around)
            _, row_best, col_best = _visit(images, texts, own, row_best, col_best, is_own=False)
            return row_best, texts, col_best

        row_best, _, col_best = lax.fori_loop(1, num_devices, hop, (row_best, texts, col_best))
        col_best = lax.ppermute(col_best, axis_name, around)
    return jnp.stack([(own >= row_best).sum(), (own >= col_best).sum()]).astype(jnp.float32)


def _visit(
    images: Array, texts: Array, own: Array, row_best: Array, col_best: Array, *, is_own: bool
) -> tuple[Array, Array, Array]:
    """Look at all pictures against a block of texts: the pairs' own similarities, and the best of each row and column.

    Every similarity comes out of the same product of tiles: equal texts are then equally near to the last bit.
    """
    num, width = images.shape[0], texts.shape[0]
    height = min(num, max(_TILE // width, 8))

    def strip(i: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        own, row_best, col_best = carry
        # The last strip ends with the block: what it sees twice changes no maximum.
        start = jnp.minimum(i * height, num - height)
        rows = lax.dynamic_slice_in_dim(images, start, height)
        similarity = lax.dot_general(rows, texts, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        if is_own:
            on_diagonal = (start + lax.iota(jnp.int32, height))[:, None] == lax.iota(jnp.int32, width)
            theirs = jnp.where(on_diagonal, similarity, -jnp.inf).max(axis=1)
            own = lax.dynamic_update_slice_in_dim(own, theirs, start, 0)
        best = jnp.maximum(lax.dynamic_slice_in_dim(row_best, start, height), similarity.max(axis=1))
        row_best = lax.dynamic_update_slice_in_dim(row_best, best, start, 0)
        return own, row_best, jnp.maximum(col_best, similarity.max(axis=0))

    return lax.fori_loop(0, -(-num // height), strip, (own, row_best, col_best))
