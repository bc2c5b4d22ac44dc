"""Where tokens and patches are: learnt, factorized, sine-cosine and rotary positions, for grids of any size.

A grid of another size than the configured one is seen as that one stretched over the image: row r of R stands where
row (r + ½) R₀ / R − ½ of the R₀ configured ones does, and columns likewise.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.config import DecoderConfig, TextConfig, VisionConfig
from clip_models.initializers import tower_initializers


class Rotation(NamedTuple):
    """Angles by which a head's pairs of channels are turned.

    Args:
        cos: float32 [b or 1, t, d / 2], of the angles.
        sin: likewise.
    """

    cos: jax.Array
    sin: jax.Array


class Places(NamedTuple):
    """Where the patches of images are. Padding after the end of an image is put where its first patch is.

    Args:
        rows: int32 [b or 1, p].
        columns: int32 [b or 1, p].
        heights: int32 [b or 1, 1], rows of each image.
        widths: int32 [b or 1, 1], columns of each image.
        grid: (rows, columns), where all images have the same.
    """

    rows: jax.Array
    columns: jax.Array
    heights: jax.Array
    widths: jax.Array
    grid: tuple[int, int] | None


def places_of_grid(height: int, width: int) -> Places:
    """Returns the places of a whole image of ``height`` × ``width`` patches, row by row."""
    index = jnp.arange(height * width, dtype=jnp.int32)[None]
    heights, widths = jnp.full((1, 1), height, jnp.int32), jnp.full((1, 1), width, jnp.int32)
    return Places(index // width, index % width, heights, widths, (height, width))


def places_of_shapes(spatial_shapes: jax.Array, num_patches: int) -> Places:
    """Returns the places in sequences of patches, row by row.

    Args:
        spatial_shapes: int [b, 2], rows and columns of each image.
        num_patches: length of the sequences.
    """
    heights, widths = (jnp.maximum(size, 1) for size in jnp.split(spatial_shapes.astype(jnp.int32), 2, axis=1))
    index = jnp.arange(num_patches, dtype=jnp.int32)[None]
    index = jnp.where(index < heights * widths, index, 0)  # as transformers does
    return Places(index // widths, index % widths, heights, widths, None)


def resampling_weights(index: jax.Array, size: jax.Array, table_size: int) -> jax.Array:
    """Weights of antialiased bilinear interpolation along one axis.

    Args:
        index: int [..., p], in [0, size).
        size: int, broadcastable to it: rows (or columns) of the image.
        table_size: those of the table.

    Returns:
        float32 [..., p, table_size]; the sum over the table is 1.
    """
    scale = table_size / size
    centre = (index + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(table_size) - centre[..., None]) / jnp.maximum(scale, 1)[..., None]
    weights = jnp.maximum(1 - distance, 0)
    return weights / weights.sum(-1, keepdims=True)


def resample(table: jax.Array, table_grid: tuple[int, int], places: Places) -> jax.Array:
    """Resamples a table of one vector per patch.

    Args:
        table: float32 [rows · columns, d].
        table_grid: its rows and columns.
        places: where vectors are wanted.

    Returns:
        float32 [b or 1, p, d].
    """
    if places.grid == table_grid:
        return table[None]
    by_row = resampling_weights(places.rows, places.heights, table_grid[0])
    by_column = resampling_weights(places.columns, places.widths, table_grid[1])
    weights = by_row[..., :, None] * by_column[..., None, :]
    return weights.reshape(*by_row.shape[:2], -1) @ table


class FactorizedPositions(nnx.Module):
    """A learnt vector for every row and one for every column, which are added.

    Args:
        config: of the tower.
        rngs: source of keys.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        init = tower_initializers(config).image_position
        height, width = config.grid
        self.rows = nnx.Param(init(rngs.params(), (height, config.width), jnp.float32), axes=("rows", "embed"))
        self.columns = nnx.Param(init(rngs.params(), (width, config.width), jnp.float32), axes=("columns", "embed"))

    def __call__(self, places: Places) -> jax.Array:
        """Returns the vectors at some places, float32 [b or 1, p, d]."""
        by_row = resampling_weights(places.rows, places.heights, self.rows.shape[0])
        by_column = resampling_weights(places.columns, places.widths, self.columns.shape[0])
        return by_row @ self.rows[...] + by_column @ self.columns[...]


def image_positions(config: VisionConfig, *, rngs: nnx.Rngs) -> nnx.Param | FactorizedPositions | None:
    """Makes an image tower's learnt positions: the class token's first, where there is one; None where there are none.

    Args:
        config: of the tower.
        rngs: source of keys.
    """
    if config.positions == "factorized":
        return FactorizedPositions(config, rngs=rngs)
    if config.positions != "learnt":
        return None
    shape = (bool(config.class_token) + config.num_patches, config.width)
    return nnx.Param(
        tower_initializers(config).image_position(rngs.params(), shape, jnp.float32), axes=("positions", "embed")
    )


def text_positions(config: TextConfig | DecoderConfig, *, rngs: nnx.Rngs) -> nnx.Param | None:
    """Makes the learnt positions of a transformer over tokens; None where there are none.

    Args:
        config: of the tower or the decoder.
        rngs: source of keys.
    """
    if config.positions != "learnt":
        return None
    shape = (config.max_length, config.width)
    return nnx.Param(
        tower_initializers(config).text_position(rngs.params(), shape, jnp.float32), axes=("positions", "embed")
    )


def sincos2d(width: int, table_grid: tuple[int, int], places: Places) -> jax.Array:
    """Sines and cosines of column and row, in big_vision's layout: sin x, cos x, sin y, cos y.

    Args:
        width: size of the vectors.
        table_grid: the grid whose rows and columns are a distance of 1 apart.
        places: where vectors are wanted.

    Returns:
        float32 [b or 1, p, width].

    References:
        https://github.com/google-research/big_vision, models/vit.py, posemb_sincos_2d.
    """
    frequencies = 10000.0 ** -(jnp.arange(width // 4) / (width // 4 - 1))
    y, x = (position[..., None] * frequencies for position in _stretched(table_grid, places))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


def rotation(positions: jax.Array, head_dim: int, base: float) -> Rotation:
    """Angles for positions along one line: pair i turns by position · base^(−2i / head_dim).

    Args:
        positions: [b or 1, t].
        head_dim: channels of a head.
        base: of the wavelengths.
    """
    angles = positions[..., None] * base ** -(jnp.arange(0, head_dim, 2) / head_dim)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotation2d(head_dim: int, base: float, table_grid: tuple[int, int], places: Places, num_unturned: int) -> Rotation:
    """Angles for patches: the first half of the pairs turns by row, the second by column.

    Args:
        head_dim: channels of a head.
        base: of the wavelengths.
        table_grid: the grid whose rows and columns are a distance of 1 apart.
        places: of the patches.
        num_unturned: tokens before the patches, which have no place.
    """
    axes = [rotation(position, head_dim // 2, base) for position in _stretched(table_grid, places)]
    cos, sin = (jnp.concatenate(parts, axis=-1) for parts in zip(*axes, strict=True))
    before = ((0, 0), (num_unturned, 0), (0, 0))
    return Rotation(jnp.pad(cos, before, constant_values=1), jnp.pad(sin, before))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns pairs of channels, each of one channel from the first half of a head and one from the second.

    Args:
        x: [b, t, heads, d].
        rotation: by how much.

    Returns:
        Like x.
    """
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _stretched(table_grid: tuple[int, int], places: Places) -> tuple[jax.Array, jax.Array]:
    """Row and column of every place in the configured grid, float32 [b or 1, p]."""
    axes = zip((places.rows, places.columns), (places.heights, places.widths), table_grid, strict=True)
    row, column = ((index + 0.5) * (table_size / size) - 0.5 for index, size, table_size in axes)
    return row, column
