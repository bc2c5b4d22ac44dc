"""Scaled dot-product attention: XLA's, cuDNN's flash attention, and splash attention on TPUs; and which suits when."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from clip_models.config import AttentionImplementation
from clip_models.platform import platform
from clip_models.products import product

# Shorter than this, XLA's matrix of weights is small, and splash attention's padding to blocks of 128 costs more.
SPLASH_MIN_TOKENS = 1024
CUDNN_MIN_TOKENS = 32
_SPLASH_BLOCK = 128


def dot_product_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    implementation: AttentionImplementation = "auto",
    float32_logits: bool = False,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(queries · keysᵀ / √d) · values for each head; the softmax runs in float32.

    A query that may look nowhere gets the mean of some values: a finite vector without meaning.

    Args:
        queries: [b, q, heads, d].
        keys: [b, t, heads, d].
        values: [b, t, heads, d].
        mask: bool, broadcastable to [b, heads, q, t]; True where a query may look.
        causal: whether query i looks no further than position i.
        implementation: which. ``auto`` takes cuDNN's where it can run, splash attention on TPUs from 1024 tokens on,
            and XLA's elsewhere.
        float32_logits: whether XLA's keeps queries · keysᵀ in float32 when the queries have less.
        dropout: share of the weights that are dropped.
        key: PRNG key of the dropout.

    Returns:
        [b, q, heads, d], in the dtype of the queries.

    Raises:
        ValueError: the implementation cannot run here.
    """
    if implementation == "auto":
        implementation = _best(queries, keys, mask, dropout)
    if implementation == "cudnn":
        return _cudnn(queries, keys, values, mask, causal)
    if implementation == "splash":
        return _splash(queries, keys, values, mask, causal)
    return _xla(queries, keys, values, mask, causal, float32_logits, dropout, key)


def _best(queries: jax.Array, keys: jax.Array, mask: jax.Array | None, dropout: float) -> AttentionImplementation:
    backend = platform()
    shortest = min(queries.shape[1], keys.shape[1])
    if dropout:
        return "xla"
    if backend == "gpu" and shortest >= CUDNN_MIN_TOKENS and _cudnn_problem(queries) is None:
        return "cudnn"
    # XLA cannot divide splash attention over devices: without a mesh in use it must be one that runs it.
    placed = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
    if backend == "tpu" and shortest >= SPLASH_MIN_TOKENS and placed and _is_key_mask(mask):
        return "splash"
    return "xla"


def _xla(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    float32_logits: bool,
    dropout: float,
    key: jax.Array | None,
) -> jax.Array:
    dtype = jnp.float32 if float32_logits else queries.dtype
    scale = 1 / math.sqrt(queries.shape[-1])
    # Heads beside the batch from the start: left to XLA, the CPU's products of strided heads take half as long again.
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    logits = jnp.einsum("bhqd,bhtd->bhqt", queries, keys, preferred_element_type=dtype) * jnp.asarray(scale, dtype)
    if causal:
        earlier = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = earlier if mask is None else mask & earlier
    if mask is not None:
        # finite, so that a row without any True gives no NaN
        logits = jnp.where(mask, logits, jnp.asarray(-0.7 * jnp.finfo(dtype).max, dtype))
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(queries.dtype)
    if dropout and key is not None:
        weights = weights * jax.random.bernoulli(key, 1 - dropout, weights.shape) / (1 - dropout)
    return product("bhqt,bhtd->bhqd", weights, values).swapaxes(1, 2)


def _cudnn_problem(queries: jax.Array) -> str | None:
    """Says why cuDNN's attention cannot run; None: it can."""
    if platform() != "gpu":
        return f"the backend is {platform()}, no GPU"
    if queries.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not {queries.dtype}"
    if queries.shape[-1] % 8 or queries.shape[-1] > 128:
        return f"heads must have a multiple of 8 channels, at most 128; these have {queries.shape[-1]}"
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version or float(device.compute_capability) < 8:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more; this is {device.device_kind}"
    return None


def _cudnn(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None, causal: bool) -> jax.Array:
    if (problem := _cudnn_problem(queries)) is not None:
        raise ValueError(f"attention='cudnn' cannot run: {problem}. Use 'auto' or 'xla'.")
    num_queries = queries.shape[1]
    if mask is not None:  # cuDNN wants it whole, and then of even lengths
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], num_queries, keys.shape[1]))
        queries, keys, values = (_pad_to(x, 2) for x in (queries, keys, values))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, queries.shape[1] - num_queries), (0, keys.shape[1] - mask.shape[3])))
    attended = jax.nn.dot_product_attention(queries, keys, values, mask=mask, is_causal=causal, implementation="cudnn")
    return attended[:, :num_queries]


def _is_key_mask(mask: jax.Array | None) -> bool:
    """Whether a mask says the same for all heads and queries."""
    return mask is None or mask.shape[1:3] == (1, 1)


def _splash(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None, causal: bool) -> jax.Array:
    if platform() != "tpu":
        raise ValueError(
            f"attention='splash' cannot run: the backend is {platform()}, no TPU. Use 'auto' or 'xla'; to compile "
            "for TPUs from elsewhere, set a mesh of theirs (jax.set_mesh)."
        )
    if mask is not None and not _is_key_mask(mask):
        raise ValueError(
            "attention='splash' takes a mask of keys, the same for every query: "
            f"[b, 1, 1, t]; got {list(mask.shape)}. Use 'auto' or 'xla'."
        )
    b, t = keys.shape[:2]
    allowed = jnp.ones((b, t), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0, :], (b, t))
    allowed |= ~allowed.any(-1, keepdims=True)  # its softmax over nothing would be 0 / 0
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, allowed: jax.Array) -> jax.Array:
        return _splash_on_one_device(queries, keys, values, allowed, causal=causal)

    if names:
        devices = math.prod(mesh.shape[name] for name in names)
        if b % devices:
            raise ValueError(f"attention='splash' divides the batch over the mesh: {b} do not divide by {devices}.")
        attend = jax.shard_map(attend, in_specs=PartitionSpec(names), out_specs=PartitionSpec(names), check_vma=False)
    return attend(queries, keys, values, allowed)


def _splash_on_one_device(
    queries: jax.Array, keys: jax.Array, values: jax.Array, allowed: jax.Array, *, causal: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # of TPUs alone

    num_queries = queries.shape[1]
    queries = _pad_to(queries / math.sqrt(queries.shape[-1]), _SPLASH_BLOCK)
    keys, values, allowed = (_pad_to(x, _SPLASH_BLOCK) for x in (keys, values, allowed))
    shape = queries.shape[1], keys.shape[1]
    one_head = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    block_q, block_kv = (next(n for n in (512, 384, 256, 128) if size % n == 0) for size in shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([one_head] * queries.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
    )
    # Where ids are equal a query may look: all queries have 1, and so have the keys that may be seen.
    ids = splash.SegmentIds(q=jnp.ones(queries.shape[:2], jnp.int32), kv=allowed.astype(jnp.int32))
    heads_first = (x.swapaxes(1, 2) for x in (queries, keys, values))
    attended: Any = jax.vmap(kernel)(*heads_first, segment_ids=ids)
    return attended.swapaxes(1, 2)[:, :num_queries]


def _pad_to(x: jax.Array, multiple: int) -> jax.Array:
    """Pads dim 1 with zeros."""
    short = -x.shape[1] % multiple
    return x if short == 0 else jnp.pad(x, ((0, 0), (0, short), *((0, 0) for _ in x.shape[2:])))
