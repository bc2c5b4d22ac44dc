"""The model as pure functions on a config and a plain nested dict of float32 arrays.

The dict is ``{"vision": {...}, "text": {...}, "logit_scale": (), "logit_bias": ()}``. A tower is there where the config
has it, ``logit_scale`` where there are both, ``logit_bias`` where, besides, the config gives it a first value. Each
function traces and compiles like any other jax function: wrap it in ``jax.jit``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from clip_models.config import ClipConfig, ComputeConfig
from clip_models.params import Params
from clip_models.towers import bind_text_tower, bind_vision_tower, make_decoder, make_text_tower, make_vision_tower


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ClipOutput:
    """What :func:`apply` returns; what its inputs do not reach is None.

    Args:
        image_embeds: float32 [b, e], unit norm.
        text_embeds: float32 [n, e], unit norm.
        logits_per_image: float32 [b, n], logit_scale · image_embeds · text_embedsᵀ + logit_bias.
        logits_per_text: float32 [n, b], its transpose.
        logit_scale: float32 (), the multiplier: the exponential of the parameter. None with one tower alone.
        logit_bias: float32 (); None where the model has none.
        image_hidden: [b, n, d], last hidden vectors of the image tower, in the compute dtype: class token, registers if
            they are kept, patches.
        text_hidden: [n, t, d], last hidden vectors of the text tower, in the compute dtype.
    """

    image_embeds: jax.Array | None
    text_embeds: jax.Array | None
    logits_per_image: jax.Array | None
    logits_per_text: jax.Array | None
    logit_scale: jax.Array | None
    logit_bias: jax.Array | None
    image_hidden: jax.Array | None
    text_hidden: jax.Array | None


class Features(NamedTuple):
    """What a tower computes before the projection.

    Args:
        pooled: float32 [b, d]; [b, k·d] with k probes.
        hidden: [b, p, d] or [b, t, d], in the compute dtype.
        mask: bool [b, p], False at hidden vectors of padding, of sequences of patches. None: there are none.
    """

    pooled: jax.Array
    hidden: jax.Array
    mask: jax.Array | None = None


def init(config: ClipConfig, key: jax.Array) -> Params:
    """Draws random parameters, by the scheme that each tower's ``initialization`` names.

    Works under ``jax.jit`` (with ``out_shardings``, each device draws its share) and ``jax.eval_shape``.

    Args:
        config: of the model.
        key: PRNG key.

    Returns:
        Nested dict of float32 arrays. Weights of the blocks have a leading dim of layers.
    """
    return _init(replace(config, compute=ComputeConfig()), key)  # how it runs is no reason to compile again


@functools.partial(jax.jit, static_argnums=0)  # one by one, its hundred operations would take seconds to compile
def _init(config: ClipConfig, key: jax.Array) -> Params:
    vision_key, text_key = jax.random.split(key)
    params: Params = {}
    if config.vision is not None:
        params["vision"] = nnx.to_pure_dict(nnx.state(make_vision_tower(config, vision_key), nnx.Param))
    if config.text is not None:
        params["text"] = nnx.to_pure_dict(nnx.state(make_text_tower(config, text_key), nnx.Param))
    if config.decoder is not None:
        decoder_key = jax.random.fold_in(key, 2)
        params["decoder"] = nnx.to_pure_dict(nnx.state(make_decoder(config, decoder_key), nnx.Param))
    if config.has_logits:
        params["logit_scale"] = jnp.float32(config.logit_scale_init)
        if config.logit_bias_init is not None:
            params["logit_bias"] = jnp.float32(config.logit_bias_init)
    return params


def apply(
    config: ClipConfig,
    params: Mapping[str, Any],
    *,
    pixel_values: jax.Array | None = None,
    input_ids: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    pixel_attention_mask: jax.Array | None = None,
    spatial_shapes: jax.Array | None = None,
    key: jax.Array | None = None,
) -> ClipOutput:
    """Runs the towers whose inputs are given and, with both, compares every image with every text.

    Args:
        config: of the model.
        params: from :func:`init` or :func:`clip_models.load_pretrained`.
        pixel_values: float [b, h, w, 3], normalised as ``config.preprocess`` says; or, where the image tower is
            ``flexible``, sequences of patches [b, p, patch_size² · 3], row by row.
        input_ids: int [n, t].
        attention_mask: [n, t], 0 at tokens that no token may attend to. None: all may be.
        pixel_attention_mask: of sequences of patches: [b, p], 0 at padding. None: ``spatial_shapes`` tells.
        spatial_shapes: of sequences of patches: int [b, 2], rows and columns of each image.
        key: PRNG key of what training drops at random. None: nothing is dropped.

    Returns:
        The embeddings, logits and hidden vectors.

    Raises:
        ValueError: an input or a parameter has not the shape that the config calls for, or an input describes another
            that is not given.
    """
    if pixel_values is None and input_ids is None:
        raise ValueError("apply needs pixel_values, input_ids or both; got neither.")
    if input_ids is None and attention_mask is not None:
        raise ValueError("attention_mask is of input_ids, which are not given: give both or neither.")
    if pixel_values is None and (pixel_attention_mask is not None or spatial_shapes is not None):
        name = "spatial_shapes" if pixel_attention_mask is None else "pixel_attention_mask"
        raise ValueError(f"{name} is of pixel_values, which are not given: give both or neither.")
    image_embeds = text_embeds = image_hidden = text_hidden = logits = None
    image_key, text_key = (None, None) if key is None else jax.random.split(key)
    if pixel_values is not None:
        tower = bind_vision_tower(config, params)
        pooled, image_hidden, _ = tower(
            pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes, key=image_key
        )
        image_embeds = _normalize(tower.project(pooled))
    if input_ids is not None:
        tower = bind_text_tower(config, params)
        pooled, text_hidden = tower(input_ids, attention_mask, key=text_key)
        text_embeds = _normalize(tower.project(pooled))
    logit_scale = jnp.exp(params["logit_scale"]) if config.has_logits else None
    logit_bias = params["logit_bias"] if config.has_logits and config.logit_bias_init is not None else None
    if image_embeds is not None and text_embeds is not None and logit_scale is not None:
        logits = logit_scale * (image_embeds @ text_embeds.T)
        logits = logits if logit_bias is None else logits + logit_bias
    return ClipOutput(
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        logits_per_image=logits,
        logits_per_text=None if logits is None else logits.T,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        image_hidden=image_hidden,
        text_hidden=text_hidden,
    )


def encode_image(
    config: ClipConfig,
    params: Mapping[str, Any],
    pixel_values: jax.Array,
    *,
    pixel_attention_mask: jax.Array | None = None,
    spatial_shapes: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Embeds images; needs ``params["vision"]`` alone.

    Args:
        config: of the model.
        params: with at least the image tower.
        pixel_values: as in :func:`apply`.
        pixel_attention_mask: as in :func:`apply`.
        spatial_shapes: as in :func:`apply`.
        key: as in :func:`apply`.

    Returns:
        float32 [b, e], unit norm.
    """
    tower = bind_vision_tower(config, params)
    pooled = tower(pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes, key=key)[0]
    return _normalize(tower.project(pooled))


def project_image(config: ClipConfig, params: Mapping[str, Any], pooled: jax.Array) -> jax.Array:
    """Embeds images of which :func:`image_features` has been taken: together they are :func:`encode_image`.

    Args:
        config: of the model.
        params: with at least the image tower.
        pooled: float32 [b, k·d].

    Returns:
        float32 [b, e], unit norm.
    """
    return _normalize(bind_vision_tower(config, params).project(pooled))


def encode_text(
    config: ClipConfig,
    params: Mapping[str, Any],
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Embeds texts; needs ``params["text"]`` alone.

    Args:
        config: of the model.
        params: with at least the text tower.
        input_ids: int [b, t].
        attention_mask: as in :func:`apply`.
        key: as in :func:`apply`.

    Returns:
        float32 [b, e], unit norm.
    """
    tower = bind_text_tower(config, params)
    return _normalize(tower.project(tower(input_ids, attention_mask, key=key)[0]))


def image_features(
    config: ClipConfig,
    params: Mapping[str, Any],
    pixel_values: jax.Array,
    *,
    pixel_attention_mask: jax.Array | None = None,
    spatial_shapes: jax.Array | None = None,
    key: jax.Array | None = None,
) -> Features:
    """Runs the image tower up to its pooled vector, for a head of your own; needs ``params["vision"]`` alone.

    Args:
        config: of the model.
        params: with at least the image tower.
        pixel_values: as in :func:`apply`.
        pixel_attention_mask: as in :func:`apply`.
        spatial_shapes: as in :func:`apply`.
        key: as in :func:`apply`.

    Returns:
        Pooled and hidden vectors, before the projection, not normalised to unit length.
    """
    tower = bind_vision_tower(config, params)
    return Features(
        *tower(pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes, key=key)
    )


def text_features(
    config: ClipConfig,
    params: Mapping[str, Any],
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
) -> Features:
    """Runs the text tower up to its pooled vector, for a head of your own; needs ``params["text"]`` alone.

    Args:
        config: of the model.
        params: with at least the text tower.
        input_ids: int [b, t].
        attention_mask: as in :func:`apply`.
        key: as in :func:`apply`.

    Returns:
        Pooled and hidden vectors, before the projection, not normalised to unit length.
    """
    return Features(*bind_text_tower(config, params)(input_ids, attention_mask, key=key))


def num_params(config: ClipConfig) -> int:
    """Counts the parameters, from shapes alone.

    Args:
        config: of the model.

    Returns:
        The count, towers, projections, scale and bias together.
    """
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _normalize(x: jax.Array) -> jax.Array:
    """Scales [b, e] to unit norm; the zero vector stays zero, with finite gradients."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))
