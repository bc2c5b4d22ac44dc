"""The decoder's training: the logits of captions, given their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clip_models.clip import Features
from clip_models.config import ClipConfig
from clip_models.towers import bind_decoder, bind_vision_tower


def caption_logits(
    config: ClipConfig,
    params: Mapping[str, Any],
    pixel_values: jax.Array | None,
    input_ids: jax.Array,
    *,
    features: Features | None = None,
    pixel_attention_mask: jax.Array | None = None,
    spatial_shapes: jax.Array | None = None,
    parallel: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Predicts every token of captions, each from the image and the tokens before it; for a loss or a score.

    The decoder reads the captions moved one to the right, ``bos_token_id`` first, so that the logits at a position are
    of the token that ``input_ids`` has there. Under parallel prediction it reads ``mask_token_id`` for all tokens,
    without a causal mask, and so predicts from the image alone. Unlike in the paper, ``bos_token_id`` stays in front:
    with rotary positions, which are relative, nothing else would tell one place from another.

    Args:
        config: of the model, with a decoder.
        params: with at least the image tower and the decoder.
        pixel_values: as in :func:`clip_models.apply`. None: ``features`` are given.
        input_ids: int [b, t], the captions, with their end and padding; t at most ``decoder.max_length``.
        features: of the images, from :func:`clip_models.image_features`, where they serve for more than captions.
        pixel_attention_mask: as in :func:`clip_models.apply`.
        spatial_shapes: as in :func:`clip_models.apply`.
        parallel: bool [b], the captions to predict in parallel. None: with a key, ``decoder.parallel_fraction`` of them
            at random; without, none.
        key: PRNG key of what training draws. None: nothing is drawn.

    Returns:
        float32 [b, t, vocab_size].

    Raises:
        ValueError: the model has no decoder, or an input has not the shape that the config calls for.

    References:
        Tschannen et al., Image Captioners Are Scalable Vision Learners Too (CapPa), 2023.
    """
    decoder = bind_decoder(config, params)
    given = decoder.config
    if input_ids.ndim != 2 or input_ids.shape[1] > given.max_length:
        raise ValueError(
            f"input_ids must be [batch, tokens], with at most decoder.max_length = {given.max_length} tokens; "
            f"got {list(input_ids.shape)}."
        )
    parallel_key, image_key, decoder_key = (None, None, None) if key is None else jax.random.split(key, 3)
    if parallel is None and parallel_key is not None and given.parallel_fraction:
        parallel = jax.random.bernoulli(parallel_key, given.parallel_fraction, input_ids.shape[:1])
    ids = jnp.pad(input_ids[:, :-1], ((0, 0), (1, 0)), constant_values=given.bos_token_id)
    if parallel is not None:
        if given.mask_token_id is None:
            raise ValueError("parallel prediction reads decoder.mask_token_id, which is None: give an id.")
        ids = jnp.where(parallel[:, None] & (jnp.arange(ids.shape[1]) > 0), given.mask_token_id, ids)
    if features is not None:
        image, image_mask = features.hidden, features.mask
    elif pixel_values is not None:
        _, image, image_mask = bind_vision_tower(config, params)(
            pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes, key=image_key
        )
    else:
        raise ValueError("caption_logits needs pixel_values or features; got neither.")
    return decoder(ids, image, image_mask=image_mask, parallel=parallel, key=decoder_key)
