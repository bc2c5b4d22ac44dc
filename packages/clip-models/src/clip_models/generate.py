"""Captions for images, written token by token by the decoder, which keeps the keys and values of those before."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clip_models.config import ClipConfig
from clip_models.decoder import Cache
from clip_models.towers import bind_decoder, bind_vision_tower


class _State(NamedTuple):
    """What the loop carries: captions int [b, t], tokens just written int [b], which captions have ended bool [b]."""

    index: jax.Array
    captions: jax.Array
    tokens: jax.Array
    ended: jax.Array
    cache: Cache
    key: jax.Array


def generate(
    config: ClipConfig,
    params: Mapping[str, Any],
    pixel_values: jax.Array,
    *,
    pixel_attention_mask: jax.Array | None = None,
    spatial_shapes: jax.Array | None = None,
    max_length: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Writes a caption for every image.

    The whole is one program, compiled once for a config, a shape of images and a ``max_length``; it stops when all
    captions have ended.

    Args:
        config: of the model, with a decoder.
        params: with at least the image tower and the decoder.
        pixel_values: as in :func:`clip_models.apply`.
        pixel_attention_mask: as in :func:`clip_models.apply`.
        spatial_shapes: as in :func:`clip_models.apply`.
        max_length: most tokens of a caption, its end included. None: ``decoder.max_length``.
        temperature: divides the logits before a token is drawn. 0: the likeliest is taken.
        top_k: a token is drawn from this many of the likeliest. None: from all.
        top_p: a token is drawn from the fewest likeliest whose probabilities add up to this. None: from all.
        key: PRNG key, needed where tokens are drawn.

    Returns:
        int32 [b, max_length]: tokens, ``eos_token_id`` where the caption ended in time, then ``pad_token_id``. There is
        no ``bos_token_id`` in front.

    Raises:
        ValueError: the model has no decoder, or an argument is out of range.

    References:
        Fan et al., Hierarchical Neural Story Generation (top k), 2018. Holtzman et al., The Curious Case of Neural Text
        Degeneration (top p), 2020.
    """
    if config.decoder is None:
        raise ValueError("captions need a decoder; config.decoder is None.")
    longest = config.decoder.max_length
    if max_length is None:
        max_length = longest
    if not 1 <= max_length <= longest:
        raise ValueError(f"max_length must be in [1, decoder.max_length={longest}]; got {max_length}.")
    if not temperature >= 0:  # nor NaN
        raise ValueError(f"temperature must not be negative; got {temperature}.")
    if top_k is not None and not 1 <= top_k <= config.decoder.vocab_size:
        raise ValueError(f"top_k must be in [1, vocab_size={config.decoder.vocab_size}]; got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1]; got {top_p}.")
    greedy = temperature == 0
    if greedy and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p say what tokens are drawn from; at temperature=0 none is drawn.")
    if not greedy and key is None:
        raise ValueError(f"temperature={temperature} draws tokens at random: give a key.")
    return _generate(
        config,
        params,
        pixel_values,
        pixel_attention_mask,
        spatial_shapes,
        jax.random.key(0) if key is None else key,
        1.0 if greedy else temperature,
        top_p,
        max_length=max_length,
        greedy=greedy,
        top_k=top_k,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_length", "greedy", "top_k"))
def _generate(
    config: ClipConfig,
    params: Mapping[str, Any],
    pixel_values: jax.Array,
    pixel_attention_mask: jax.Array | None,
    spatial_shapes: jax.Array | None,
    key: jax.Array,
    temperature: jax.Array | float,
    top_p: jax.Array | float | None,
    *,
    max_length: int,
    greedy: bool,
    top_k: int | None,
) -> jax.Array:
    _, image, image_mask = bind_vision_tower(config, params)(
        pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes
    )
    # flash attention is for many queries; here is one at a time
    decoder = bind_decoder(replace(config, compute=replace(config.compute, attention="auto")), params)
    given = decoder.config
    b = image.shape[0]

    def unfinished(state: _State) -> jax.Array:
        return (state.index < max_length) & ~state.ended.all()

    def write(state: _State) -> _State:
        key, draw_key = jax.random.split(state.key)
        logits, cache = decoder.step(state.tokens, state.index, state.cache, image_mask=image_mask)
        if greedy:
            tokens = logits.argmax(-1)
        else:
            tokens = jax.random.categorical(draw_key, likeliest(logits / temperature, top_k=top_k, top_p=top_p))
        tokens = jnp.where(state.ended, given.pad_token_id, tokens).astype(jnp.int32)
        captions = jax.lax.dynamic_update_slice_in_dim(state.captions, tokens[:, None], state.index, axis=1)
        ended = state.ended | (tokens == given.eos_token_id)
        return _State(state.index + 1, captions, tokens, ended, cache, key)

    start = _State(
        index=jnp.int32(0),
        captions=jnp.full((b, max_length), given.pad_token_id, jnp.int32),
        tokens=jnp.full(b, given.bos_token_id, jnp.int32),
        ended=jnp.zeros(b, bool),
        cache=decoder.start(image, max_length),
        key=key,
    )
    return jax.lax.while_loop(unfinished, write, start).captions


def likeliest(logits: jax.Array, *, top_k: int | None, top_p: jax.Array | float | None) -> jax.Array:
    """Keeps the logits that a token is drawn from, and sets the others to -inf.

    Args:
        logits: float32 [b, vocab_size].
        top_k: how many are kept, with those that equal the last of them. None: all.
        top_p: the fewest are kept whose probabilities, among those of ``top_k``, add up to it. None: all.

    Returns:
        float32 [b, vocab_size].
    """
    if top_k is not None:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][:, -1:], logits, -jnp.inf)
    if top_p is not None:
        falling = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(falling, axis=-1, keepdims=True, where=before < top_p, initial=jnp.inf)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits
