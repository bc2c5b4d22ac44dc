"""The transformer block, and many of them with stacked weights, scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.activations import constrained
from clip_models.attention import Attention
from clip_models.config import ComputeConfig, TransformerConfig
from clip_models.dropout import drop_path, dropout
from clip_models.mlp import Mlp
from clip_models.norm import tower_norm
from clip_models.platform import platform
from clip_models.positions import Rotation
from clip_models.remat import rematerialize

# A token of each sequence: the same position in all (from the end if negative), or int [b], each one's own.
Token = int | jax.Array

# From so many tokens on, on a device, a last block for one token of each sequence saves more time (20 d² operations a
# token) than copying the other layers' weights takes (12 d² each, read and written), for the speeds of today's devices.
MIN_TOKENS = 8192
CPU_MIN_TOKENS = 1024


class Block(nnx.Module):
    """A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    NormFormer's has another norm after attention, and one inside the MLP. What each half adds may be scaled per
    channel (layer scale) and, in training, dropped: by element, or whole for a sample (stochastic depth).

    Args:
        config: of the tower.
        compute: how it runs.
        rngs: source of keys.
    """

    def __init__(self, config: TransformerConfig, compute: ComputeConfig, *, rngs: nnx.Rngs):
        self.norm1 = tower_norm(config)
        self.attention = Attention(config, compute, rngs=rngs)
        self.attention_norm = tower_norm(config, scaled=True) if config.block == "normformer" else None
        self.norm2 = tower_norm(config)
        self.mlp = Mlp(config, rngs=rngs)
        self.layer_scale1, self.layer_scale2 = layer_scale(config), layer_scale(config)
        self.dropout = config.dropout
        self.drop_path = config.drop_path > 0

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        key: jax.Array | None = None,
        depth_rate: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [b, t, d] to [b, t, d].

        Args:
            x: [b, t, d].
            mask: as in :class:`Attention`.
            causal: as in :class:`Attention`.
            rotation: as in :class:`Attention`.
            key: PRNG key. None: nothing is dropped.
            depth_rate: float (), probability that a sample skips a half of this block.
        """
        weights_key, first_key, second_key = (None, None, None) if key is None else jax.random.split(key, 3)
        y = self.norm1(x)
        y = self.attention(y, y, mask=mask, causal=causal, rotation=rotation, key=weights_key)
        return self._add(x, y, first_key, second_key, depth_rate)

    def at(
        self,
        token: Token,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        """Computes one token of each sequence alone: what :meth:`__call__` without a key gives there.

        All of a sequence is normalised and projected to keys and values; the rest of the block is run for one token.

        Args:
            token: which.
            x: [b, t, d].
            mask: bool [b, 1, 1, t]. None: every token may be seen.
            causal: as in :class:`Attention`.
            rotation: as in :class:`Attention`.

        Returns:
            [b, 1, d].
        """
        y = self.norm1(x)
        keys, values = self.attention.keys_and_values(y, rotation)
        turned = None if rotation is None else Rotation(*(_take(part, token, x.shape[0]) for part in rotation))
        queries = self.attention.queries(_take(y, token), turned)
        if causal:
            last = token % x.shape[1] if isinstance(token, int) else token[:, None, None, None]
            earlier = jnp.arange(x.shape[1]) <= last
            mask = jnp.broadcast_to(earlier, (x.shape[0], 1, 1, x.shape[1])) if mask is None else mask & earlier
        return self._add(_take(x, token), self.attention.attend(queries, keys, values, mask=mask), None, None, None)

    def _add(
        self,
        x: jax.Array,
        y: jax.Array,
        first_key: jax.Array | None,
        second_key: jax.Array | None,
        depth_rate: jax.Array | None,
    ) -> jax.Array:
        """Adds to x, [b, t, d], the attention y and then the MLP."""
        if self.attention_norm is not None:
            y = self.attention_norm(y)
        x = x + self._branch(y, self.layer_scale1, first_key, depth_rate)
        return x + self._branch(self.mlp(self.norm2(x)), self.layer_scale2, second_key, depth_rate)

    def _branch(
        self, y: jax.Array, scale: nnx.Param | None, key: jax.Array | None, depth_rate: jax.Array | None
    ) -> jax.Array:
        if scale is not None:
            y = y * scale[...].astype(y.dtype)
        if key is None:
            return y
        element_key, path_key = jax.random.split(key)
        y = dropout(y, self.dropout, element_key)
        return drop_path(y, depth_rate, path_key) if self.drop_path and depth_rate is not None else y


def layer_scale(config: TransformerConfig) -> nnx.Param | None:
    """Makes the factors per channel on what half of a block adds; None where the config has none."""
    if config.layer_scale is None:
        return None
    return nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32), axes=("norm",))


def stack_blocks(
    config: TransformerConfig,
    compute: ComputeConfig,
    *,
    rngs: nnx.Rngs,
    block: Callable[..., nnx.Module] = Block,
) -> Any:
    """Makes ``config.num_layers`` blocks as one, each of whose weights has a leading ``layers`` dim.

    Args:
        config: of the tower.
        compute: how it runs.
        rngs: source of keys.
        block: the class, made as :class:`Block` is.

    Returns:
        The blocks, for :func:`scan_blocks`.
    """
    keys = jax.random.split(rngs.params(), config.num_layers)
    # One after the other: what drawing takes besides, on CPUs three times what is drawn, is then that of one block.
    draw = nnx.scan(lambda key: block(config, compute, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
    blocks = draw(keys)
    for _, variable in nnx.iter_graph(blocks):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return blocks


def scan_blocks(
    blocks: nnx.Module,
    x: jax.Array,
    *,
    config: TransformerConfig,
    compute: ComputeConfig,
    key: jax.Array | None = None,
    **inputs: Any,
) -> jax.Array:
    """Runs stacked blocks one after the other, as one scan: a block is traced and compiled once.

    Args:
        blocks: from :func:`stack_blocks`.
        x: [b, t, d].
        config: of the tower.
        compute: remat and unroll.
        key: PRNG key of what training drops. None: nothing is dropped.
        **inputs: what else every block takes, the same for all: mask, causal, rotation.

    Returns:
        [b, t, d].
    """
    graphdef, layers = nnx.split(blocks)
    per_layer: dict[str, jax.Array] = {}
    if key is not None and drops(config):
        per_layer["key"] = jax.random.split(key, config.num_layers)
        if config.drop_path:
            per_layer["depth_rate"] = jnp.linspace(config.drop_path, 0, config.num_layers)[::-1]
    return _scan(graphdef, (layers, per_layer), x, compute, inputs)


def scan_blocks_at(
    blocks: nnx.Module,
    x: jax.Array,
    token: Token,
    *,
    config: TransformerConfig,
    compute: ComputeConfig,
    key: jax.Array | None = None,
    **inputs: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs stacked blocks as :func:`scan_blocks` does, for callers who may want one token of each sequence alone.

    The last block is then there twice: for every token, and for that one (:meth:`Block.at`). Under ``jax.jit`` the one
    whose result is not used is not run, and five sixths of a block's products, at least, are saved. Where little is to
    be saved, the token is taken from what every token gives.

    Args:
        blocks: from :func:`stack_blocks`.
        x: [b, t, d].
        token: which.
        config: of the tower.
        compute: remat and unroll.
        key: PRNG key of what training drops. None: nothing is dropped.
        **inputs: as of :func:`scan_blocks`.

    Returns:
        (hidden [b, t, d], that of the token [b, d]).
    """
    if (key is not None and drops(config)) or config.num_layers == 1 or not _pays(x):
        hidden = scan_blocks(blocks, x, config=config, compute=compute, key=key, **inputs)
        return hidden, _take(hidden, token)[:, 0]
    graphdef, layers = nnx.split(blocks)
    others, last = _split_last(layers)
    x = _scan(graphdef, (others, {}), x, compute, inputs)

    def every(x: jax.Array, weights: nnx.State) -> jax.Array:
        return constrained(nnx.merge(graphdef, weights)(x, **inputs), "batch", "length", "embed")

    def one(x: jax.Array, weights: nnx.State) -> jax.Array:
        block: Any = nnx.merge(graphdef, weights)
        return block.at(token, x, **inputs)[:, 0]

    every, one = (rematerialize(run, compute.remat, in_scan=False) for run in (every, one))
    return every(x, last), one(x, last)


def drops(config: TransformerConfig) -> bool:
    """Whether blocks drop anything at random in training."""
    return max(config.dropout, config.attention_dropout, config.drop_path) > 0


def _scan(
    graphdef: nnx.GraphDef, layers: tuple[Any, dict[str, jax.Array]], x: jax.Array, compute: ComputeConfig, inputs: Any
) -> jax.Array:
    def step(x: jax.Array, layer: tuple[nnx.State, dict[str, jax.Array]]) -> tuple[jax.Array, None]:
        weights, drawn = layer
        x = nnx.merge(graphdef, weights)(x, **drawn, **inputs)
        return constrained(x, "batch", "length", "embed"), None

    step = rematerialize(step, compute.remat)
    x = constrained(x, "batch", "length", "embed")
    return jax.lax.scan(step, x, layers, unroll=compute.unroll)[0]


def _split_last(layers: nnx.State) -> tuple[nnx.State, nnx.State]:
    """All stacked layers but the last, and the last.

    The gradients of ``lax.split`` are concatenated. Those of slices are padded with zeros and added, which moves three
    times the bytes: a twelfth of a step of ViT-B/32 on a CPU.
    """
    leaves, structure = jax.tree.flatten(layers)
    pairs = [jax.lax.split(leaf, (len(leaf) - 1, 1)) for leaf in leaves]
    others, last = ([pair[i] for pair in pairs] for i in (0, 1))
    return structure.unflatten(others), structure.unflatten([leaf[0] for leaf in last])


def _pays(x: jax.Array) -> bool:
    """Whether a token's own last block saves more than it costs: the other layers' weights are copied for it."""
    mesh = jax.sharding.get_abstract_mesh()
    tokens = x.shape[0] * x.shape[1] // (1 if mesh.empty else mesh.size)
    if not isinstance(tokens, int):  # of jax.export, for batches of any size
        return False
    return tokens >= (CPU_MIN_TOKENS if platform() == "cpu" else MIN_TOKENS)


def _take(x: jax.Array, token: Token, batch_size: int | None = None) -> jax.Array:
    """Takes a token of each sequence: [b or 1, t, d] to [b or 1, 1, d]."""
    if isinstance(token, int):
        return jax.lax.slice_in_dim(x, token % x.shape[1], token % x.shape[1] + 1, axis=1)
    if batch_size is not None:
        x = jnp.broadcast_to(x, (batch_size, *x.shape[1:]))
    return jnp.take_along_axis(x, token[:, None, None], axis=1)
