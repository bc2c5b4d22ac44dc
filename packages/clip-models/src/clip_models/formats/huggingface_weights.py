"""The tensors of Hugging Face's CLIPModel and SiglipModel: their names and layouts beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from clip_models.clip import init
from clip_models.config import ClipConfig
from clip_models.params import Params, check_shapes, shapes, unflatten


class Source(NamedTuple):
    """Where one of our arrays is in their file.

    Args:
        name: of their tensor, with ``{layer}`` where ours is stacked over layers.
        layout: of their tensor. ``kernel`` is [out, in], ``patches`` [d, 3, p, p], ``probe`` [1, 1, d], ``scalar`` a
            single number, ``same`` as ours.
        third: which third of their first dim is ours; None: all of it.
    """

    name: str
    layout: Literal["same", "kernel", "patches", "probe", "scalar"] = "same"
    third: int | None = None


def sources(config: ClipConfig) -> Iterator[tuple[str, Source]]:
    """Yields (our flat name, its source) for every array of a CLIP or SigLIP config."""
    if config.vision is None or config.text is None:
        raise ValueError("a CLIP or SigLIP config has both towers; one of them is None.")
    yield "logit_scale", Source("logit_scale", "scalar")
    if config.logit_bias_init is not None:
        yield "logit_bias", Source("logit_bias", "scalar")

    yield "vision/patch_embedding/kernel", Source("vision_model.embeddings.patch_embedding.weight", "patches")
    if config.vision.patch_bias:
        yield "vision/patch_embedding/bias", Source("vision_model.embeddings.patch_embedding.bias")
    yield "vision/position_embedding", Source("vision_model.embeddings.position_embedding.weight")
    if config.vision.pool == "cls":
        yield "vision/class_embedding", Source("vision_model.embeddings.class_embedding")
    if config.vision.embed_norm:
        yield from _norm("vision/embed_norm", "vision_model.pre_layrnorm")
    yield from _blocks("vision/blocks", "vision_model.encoder.layers.{layer}")
    yield from _norm("vision/norm", "vision_model.post_layernorm")
    if config.vision.pool == "map":
        yield from _map_head("vision/map_head", "vision_model.head")
    if config.projection_dim is not None:
        yield "vision/projection/kernel", Source("visual_projection.weight", "kernel")

    yield "text/token_embedding", Source("text_model.embeddings.token_embedding.weight")
    yield "text/position_embedding", Source("text_model.embeddings.position_embedding.weight")
    yield from _blocks("text/blocks", "text_model.encoder.layers.{layer}")
    yield from _norm("text/norm", "text_model.final_layer_norm")
    if config.text.projection_bias:
        yield from _linear("text/projection", "text_model.head")
    else:
        yield "text/projection/kernel", Source("text_projection.weight", "kernel")


def read_weights(path: Path, config: ClipConfig) -> Params:
    """Reads a safetensors file.

    Args:
        path: of the file.
        config: what it holds.

    Returns:
        float32 parameters.

    Raises:
        ValueError: naming every tensor that is missing, extra or misshapen.
    """
    wanted = shapes(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    with safe_open(path, framework="numpy") as file:
        # CLIP's first exports hold the positions' indices, which are no weights.
        names = [name for name in file.keys() if not name.endswith("embeddings.position_ids")]  # noqa: SIM118
        arrived = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        expected = {}
        patch_size = config.vision.patch_size if config.vision is not None else 0
        for ours, source in sources(config):
            for name, shape in _expected(source, wanted[ours], patch_size):
                # The two numbers come as [] or [1], by the age of the export.
                expected[name] = (1,) if shape == () and arrived.get(name) == (1,) else shape
        check_shapes(expected, arrived, source=str(path))
        return unflatten({ours: _read(file, source, wanted[ours]) for ours, source in sources(config)})


def _read(file: Any, source: Source, shape: tuple[int, ...]) -> jax.Array:
    """Reads one of our arrays, of the given shape."""
    if "{layer}" not in source.name:
        return jnp.asarray(_convert(file.get_tensor(source.name), source), jnp.float32)
    stacked = np.empty(shape, np.float32)
    for layer in range(shape[0]):
        stacked[layer] = _convert(file.get_tensor(source.name.format(layer=layer)), source)
    return jnp.asarray(stacked)


def _convert(tensor: np.ndarray, source: Source) -> np.ndarray:
    """Turns one of their tensors to our layout."""
    if source.third is not None:
        tensor = np.split(tensor, 3)[source.third]
    match source.layout:
        case "kernel":
            return tensor.T
        case "patches":
            return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
        case "probe":
            return tensor[0]
        case "scalar":
            return tensor.reshape(())
        case "same":
            return tensor


def _expected(source: Source, shape: tuple[int, ...], patch_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name and shape of the tensors that an array of ours, of the given shape, comes from."""
    num_layers, shape = (shape[0], shape[1:]) if "{layer}" in source.name else (1, shape)
    layouts = {
        "same": shape,
        "kernel": shape[::-1],
        "patches": (*shape[-1:], 3, patch_size, patch_size),
        "probe": (1, *shape),
        "scalar": (),
    }
    theirs = layouts[source.layout]
    if source.third is not None:
        theirs = (3 * theirs[0], *theirs[1:])
    for layer in range(num_layers):
        yield source.name.format(layer=layer), theirs


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/scale", Source(f"{theirs}.weight")
    yield f"{ours}/bias", Source(f"{theirs}.bias")


def _linear(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/kernel", Source(f"{theirs}.weight", "kernel")
    yield f"{ours}/bias", Source(f"{theirs}.bias")


def _blocks(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield from _norm(f"{ours}/norm1", f"{theirs}.layer_norm1")
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        yield from _linear(f"{ours}/attention/{part}", f"{theirs}.self_attn.{name}")
    yield from _norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
    yield from _linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1")
    yield from _linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2")


def _map_head(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"{ours}/probe", Source(f"{theirs}.probe", "probe")
    for third, part in enumerate(("query", "key", "value")):
        yield f"{ours}/attention/{part}/kernel", Source(f"{theirs}.attention.in_proj_weight", "kernel", third)
        yield f"{ours}/attention/{part}/bias", Source(f"{theirs}.attention.in_proj_bias", "same", third)
    yield from _linear(f"{ours}/attention/out", f"{theirs}.attention.out_proj")
    yield from _norm(f"{ours}/norm", f"{theirs}.layernorm")
    yield from _linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1")
    yield from _linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2")
