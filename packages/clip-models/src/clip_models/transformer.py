"""The transformer block, and many of them with stacked weights, scanned."""

from __future__ import annotations

import jax
from flax import nnx

from clip_models.attention import Attention
from clip_models.config import ComputeConfig, TransformerConfig
from clip_models.mlp import Mlp
from clip_models.norm import LayerNorm


class Block(nnx.Module):
    """A pre-norm block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Args:
        config: of the tower.
        rngs: source of keys.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, causal: bool = False) -> jax.Array:
        """Maps [b, t, d] to [b, t, d]; mask and causal as in :class:`Attention`."""
        y = self.norm1(x)
        x = x + self.attention(y, y, mask=mask, causal=causal)
        return x + self.mlp(self.norm2(x))


def stack_blocks(config: TransformerConfig, *, rngs: nnx.Rngs) -> Block:
    """Makes ``config.num_layers`` blocks as one, each of whose weights has a leading ``layers`` dim.

    Args:
        config: of the tower.
        rngs: source of keys.

    Returns:
        The blocks, for :func:`scan_blocks`.
    """
    keys = jax.random.split(rngs.params(), config.num_layers)
    blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
    for _, variable in nnx.iter_graph(blocks):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return blocks


def scan_blocks(
    blocks: Block,
    x: jax.Array,
    *,
    compute: ComputeConfig,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Runs stacked blocks one after the other, as one scan: a block is traced and compiled once.

    Args:
        blocks: from :func:`stack_blocks`.
        x: [b, t, d].
        compute: remat and unroll.
        mask: as in :class:`Attention`.
        causal: as in :class:`Attention`.

    Returns:
        [b, t, d].
    """
    graphdef, layers = nnx.split(blocks)

    def step(x: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
        return nnx.merge(graphdef, layer)(x, mask=mask, causal=causal), None

    if compute.remat != "none":
        policies = {"full": None, "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        # A scan's body is compiled apart: common subexpressions cannot undo the remat, so the barrier would only cost.
        step = jax.checkpoint(step, policy=policies[compute.remat], prevent_cse=False)
    return jax.lax.scan(step, x, layers, unroll=compute.unroll)[0]
