"""Logical names of every parameter's dims, read off the variables."""

from __future__ import annotations

from flax import nnx

from clip_models.config import ClipConfig
from clip_models.params import Params, unflatten
from clip_models.towers import decoder_structure, text_structure, vision_structure


def logical_axes(config: ClipConfig) -> Params:
    """Names the dims of every parameter, for whoever places them on devices.

    The names: ``layers``, ``embed``, ``heads`` (heads × head size, heads first), ``mlp``, ``vocab``, ``patch``,
    ``projection``, ``pooled`` (what several probes give to the projection); and of the small arrays ``positions``,
    ``rows``, ``columns``, ``registers``, ``queries`` (the probes), ``norm``, ``head_dim``.

    Args:
        config: of the model.

    Returns:
        The tree of :func:`init` with, for each array, a tuple of one name per dim.
    """

    tree: Params = {}
    if config.vision is not None:
        tree["vision"] = _axes(vision_structure(config)[1])
    if config.text is not None:
        tree["text"] = _axes(text_structure(config)[1])
    if config.decoder is not None:
        tree["decoder"] = _axes(decoder_structure(config)[1])
    if config.has_logits:
        tree["logit_scale"] = ()
        if config.logit_bias_init is not None:
            tree["logit_bias"] = ()
    return tree


def _axes(state: nnx.State) -> Params:
    return unflatten(
        {"/".join(map(str, path)): variable.get_metadata("axes") for path, variable in nnx.to_flat_state(state)}
    )
