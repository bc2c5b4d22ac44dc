"""Changes to a model as a whole: a config and its parameters in, another config and the parameters that fit it out.

Nothing given is changed. What a change keeps is shared with the given tree; what it cannot keep is drawn by
:func:`clip_models.init` from the key. To replace a single field that no parameter depends on, ``dataclasses.replace``
does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax

from clip_models.clip import init
from clip_models.config import ClipConfig, TextConfig, TextPool, VisionConfig, VisionPool
from clip_models.params import Params, check_shapes, flatten, shapes, unflatten

Model = tuple[ClipConfig, Params]


def resize_images(config: ClipConfig, params: Mapping[str, Any], image_size: int | tuple[int, int]) -> Model:
    """Makes a model take images of another size.

    Learnt positions are resampled to the new grid of patches bilinearly, antialiased where it gets smaller, those of
    ``factorized`` linearly: what a ``flexible`` tower does at every call. The class token keeps its own. ``sincos2d``
    and ``rotary`` have none to resample: their formulas extend to the new grid.

    Args:
        config: of the model, with an image tower.
        params: its arrays.
        image_size: side of the images, or their (height, width), pixels.

    Returns:
        (config, params); ``preprocess.size`` follows, ``preprocess.max_patches`` stays.
    """
    old = _vision(config)
    new = replace(old, image_size=image_size)
    flat = dict(flatten(params))
    if old.positions == "learnt":
        table = flat["vision/position_embedding"]
        num_tokens = table.shape[0] - old.num_patches  # those that are no patches keep their positions
        grid = table[num_tokens:].reshape(*old.grid, old.width)
        patches = _resample(grid, (*new.grid, old.width)).reshape(new.num_patches, old.width)
        flat["vision/position_embedding"] = jax.numpy.concatenate([table[:num_tokens], patches])
    elif old.positions == "factorized":
        for name, length in zip(("rows", "columns"), new.grid, strict=True):
            name = f"vision/position_embedding/{name}"
            flat[name] = _resample(flat[name], (length, old.width))
    return _checked(replace(config, vision=new, preprocess=replace(config.preprocess, size=0)), flat)


def resize_texts(config: ClipConfig, params: Mapping[str, Any], max_length: int) -> Model:
    """Makes a model take texts of another length: its text tower, its decoder, or both.

    Learnt positions are cut where the texts get shorter, so that short texts stay what they were, and resampled
    linearly where they get longer. ``rotary`` has none.

    Args:
        config: of the model, with a text tower or a decoder.
        params: its arrays.
        max_length: longest text, tokens.

    Returns:
        (config, params); ``preprocess.text_length`` follows where it was the longest text, and is cut to it elsewhere.
    """
    flat, parts = dict(flatten(params)), {}
    for name, part in (("text", config.text), ("decoder", config.decoder)):
        if part is None:
            continue
        parts[name] = replace(part, max_length=max_length)
        if part.positions == "learnt":
            table = flat[f"{name}/position_embedding"]
            longer = max_length > part.max_length
            resized = _resample(table, (max_length, part.width)) if longer else table[:max_length]
            flat[f"{name}/position_embedding"] = resized
    if config.max_text_length is None:
        raise ValueError("texts have a length where there is a text tower or a decoder; the model has neither.")
    length = config.preprocess.text_length
    length = 0 if length == config.max_text_length else min(length, max_length)
    return _checked(replace(config, **parts, preprocess=replace(config.preprocess, text_length=length)), flat)


def new_projection(config: ClipConfig, params: Mapping[str, Any], projection_dim: int | None, key: jax.Array) -> Model:
    """Gives a model another shared embedding, with projections drawn anew.

    Args:
        config: of the model.
        params: its arrays.
        projection_dim: as in :class:`ClipConfig`. None: the image tower's pooled vector is the embedding.
        key: PRNG key.

    Returns:
        (config, params).
    """
    vision = config.vision
    if projection_dim is None and vision is not None:
        vision = replace(vision, projection_bias=False)  # there is no projection to have one
    changed = replace(config, vision=vision, projection_dim=projection_dim)
    return _redraw(changed, params, key, ("vision/projection", "text/projection"))


def only_vision(config: ClipConfig, params: Mapping[str, Any]) -> Model:
    """Keeps the image tower and its projection alone.

    Args:
        config: of the model, with an image tower.
        params: its arrays.

    Returns:
        (config, params); :func:`clip_models.encode_image` gives what it gave.
    """
    _vision(config)
    return replace(config, text=None, decoder=None), {"vision": params["vision"]}


def only_text(config: ClipConfig, params: Mapping[str, Any]) -> Model:
    """Keeps the text tower and its projection alone.

    Args:
        config: of the model, with a text tower.
        params: its arrays.

    Returns:
        (config, params); :func:`clip_models.encode_text` gives what it gave.
    """
    _text(config)
    projection_dim = config.text_projection_dim  # which may have followed from the image tower
    return replace(config, vision=None, decoder=None, projection_dim=projection_dim), {"text": params["text"]}


def fresh_head(
    config: ClipConfig,
    params: Mapping[str, Any],
    tower: Literal["vision", "text"],
    key: jax.Array,
    *,
    pool: VisionPool | TextPool | None = None,
    num_queries: int | None = None,
) -> Model:
    """Draws a tower's pooling head and its projection anew, pooling in another way where one is named.

    Everything below stays, a class token included. Where the shared embedding changes its size with the image tower's
    pooled vector, the text projection is drawn anew too.

    Args:
        config: of the model.
        params: its arrays.
        tower: whose head.
        key: PRNG key.
        pool: as in :class:`VisionConfig` or :class:`TextConfig`. None: as it is. Where an image tower changes it,
            ``final_norm`` becomes what ``auto`` gives.
        num_queries: probes of ``map``. None: as many as there are, or one where there were none.

    Returns:
        (config, params).

    Raises:
        ValueError: there is no such tower, or it has no class token to pool.
    """
    _check_tower(tower, "vision", "text")
    old = _vision(config) if tower == "vision" else _text(config)
    if pool == "cls" and isinstance(old, VisionConfig) and not old.class_token:
        raise ValueError(
            "pool='cls' takes the class token, and this image tower was made without one (class_token=False): "
            "pool by 'map' or 'gap'."
        )
    changes: dict[str, Any] = {"pool": pool or old.pool}
    changes["num_queries"] = num_queries or (old.num_queries if changes["pool"] == "map" else 1)
    if isinstance(old, VisionConfig) and changes["pool"] != old.pool:
        changes["final_norm"] = "auto"
    changed = replace(config, **{tower: replace(old, **changes)})
    return _redraw(changed, params, key, (f"{tower}/map_head", f"{tower}/projection"))


def drop_layers(
    config: ClipConfig,
    params: Mapping[str, Any],
    tower: Literal["vision", "text", "decoder"],
    keep: Sequence[int],
) -> Model:
    """Keeps some blocks of a tower, in their order.

    Args:
        config: of the model.
        params: its arrays.
        tower: whose blocks.
        keep: indices of the blocks to keep, increasing, from 0.

    Returns:
        (config, params).

    Raises:
        ValueError: there is no such tower, or no such block.
    """
    _check_tower(tower, "vision", "text", "decoder")
    old = getattr(config, tower)
    if old is None:
        raise ValueError(f"the model has no {tower} to drop layers of.")
    keep = list(keep)
    if not keep or keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= old.num_layers:
        raise ValueError(f"keep must hold increasing indices of the {old.num_layers} layers of {tower}; got {keep}.")
    blocks = f"{tower}/blocks/"
    indices = jax.numpy.array(keep)
    flat = {name: leaf[indices] if name.startswith(blocks) else leaf for name, leaf in flatten(params).items()}
    return _checked(replace(config, **{tower: replace(old, num_layers=len(keep))}), flat)


def replace_vision(config: ClipConfig, params: Mapping[str, Any], other: Model, key: jax.Array) -> Model:
    """Puts the image tower of another model in the place of this one's, as LiT does with a trained tower.

    The projection to the shared embedding is drawn anew, as it belongs to the old pair; that of the text too where the
    embedding changes its size, and the logit scale and bias begin again where this model had none.

    Args:
        config: of the model that keeps its texts.
        params: its arrays.
        other: (config, params) of the model that gives its image tower, as :func:`clip_models.load_pretrained` returns
            them; its text is not looked at.
        key: PRNG key.

    Returns:
        (config, params); what ``preprocess`` says of pictures comes from ``other``.

    Raises:
        ValueError: ``other`` has no image tower, or a decoder here reads hidden vectors of another width.

    References:
        Zhai et al., LiT: Zero-Shot Transfer with Locked-image text Tuning, 2022.
    """
    other_config, other_params = other
    vision = _vision(other_config)
    if config.decoder is not None and config.vision is not None and config.vision.width != vision.width:
        raise ValueError(
            f"the decoder reads hidden vectors of width {config.vision.width}; the other image tower gives "
            f"{vision.width}: leave the decoder out of the config, and of params."
        )
    pictures = ("size", "resize_mode", "max_patches", "interpolation", "mean", "std")
    preprocess = replace(config.preprocess, **{name: getattr(other_config.preprocess, name) for name in pictures})
    joined = {**params, "vision": other_params["vision"]}
    fresh = ["vision/projection", *(name for name in ("logit_scale", "logit_bias") if name not in params)]
    return _redraw(replace(config, vision=vision, preprocess=preprocess), joined, key, fresh)


def redraw(config: ClipConfig, params: Mapping[str, Any], fresh: Sequence[str], key: jax.Array) -> Model:
    """Keeps the arrays that a config still has, and draws parts of it as :func:`clip_models.init` does.

    Args:
        config: of the model to make.
        params: of any model; arrays that ``config`` has not are left out.
        fresh: the parts to draw, such as ``"decoder"``, ``"vision/map_head"`` or ``"logit_scale"``.
        key: PRNG key.

    Returns:
        (config, params).

    Raises:
        ValueError: the config has no such part; or an array is missing or misshapen that no part in ``fresh`` holds.
    """
    expected = shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    if unknown := [part for part in fresh if not any(_is_in(name, part) for name in expected)]:
        parts = sorted({"/".join(name.split("/")[:2]) for name in expected})
        raise ValueError(f"{', '.join(unknown)} must be parts of the model, such as {', '.join(parts)}.")
    return _redraw(config, params, key, fresh)


def _check_tower(tower: str, *known: str) -> None:
    if tower not in known:
        raise ValueError(f"tower must be one of {', '.join(known)}; got {tower!r}.")


def _vision(config: ClipConfig) -> VisionConfig:
    if config.vision is None:
        raise ValueError("this is done to an image tower; the model has none (config.vision is None).")
    return config.vision


def _text(config: ClipConfig) -> TextConfig:
    if config.text is None:
        raise ValueError("this is done to a text tower; the model has none (config.text is None).")
    return config.text


def _resample(table: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.image.resize(table, shape, "linear") if table.shape != shape else table


def _redraw(config: ClipConfig, params: Mapping[str, Any], key: jax.Array, fresh: Sequence[str]) -> Model:
    """Keeps the arrays that the config still has, and draws those under the names in ``fresh`` as init does."""
    expected, flat = shapes(jax.eval_shape(lambda: init(config, jax.random.key(0)))), flatten(params)
    text = {name: shape for name, shape in expected.items() if name.startswith("text/projection/")}
    if any(name not in flat or flat[name].shape != shape for name, shape in text.items()):
        fresh = [*fresh, "text/projection"]
    drawn = [name for name in expected if any(_is_in(name, part) for part in fresh)]
    # under jit, what is not returned is not drawn
    new = jax.jit(lambda key: {name: leaf for name, leaf in flatten(init(config, key)).items() if name in drawn})(key)
    return _checked(config, {**{name: leaf for name, leaf in flat.items() if name in expected}, **new})


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/")


def _checked(config: ClipConfig, flat: Mapping[str, Any]) -> Model:
    params = unflatten(flat)
    expected = shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    check_shapes(expected, shapes(params), source="params")
    return config, params
