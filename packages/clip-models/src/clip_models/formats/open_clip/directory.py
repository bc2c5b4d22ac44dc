"""open_clip's directories: opened, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig, TransformerConfig
from clip_models.formats.differences import differences
from clip_models.formats.open_clip.config import read_config, write_config
from clip_models.formats.open_clip.timm import timm_sources
from clip_models.formats.params_io import write_params
from clip_models.formats.source import Pairs, Source, Sources, torch_attention, torch_linear, torch_norm, torch_patches
from clip_models.formats.stored import Stored, open_directory, read_json, translating, write_json
from clip_models.formats.tensor_file import TensorFiles, open_safetensors
from clip_models.formats.tokenizer import read_tokenizer

CONFIG_NAME = "open_clip_config.json"
EXAMPLE_PROGRAM = """\
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIRECTORY")
tokenizer = open_clip.get_tokenizer("local-dir:DIRECTORY")"""
"""Python that opens a directory which :func:`write_open_clip` wrote, for its model card."""

_WEIGHTS_NAME = "open_clip_model"


def read_directory_config(directory: Path, *, repo: str | None = None) -> ClipConfig:
    """Reads open_clip_config.json of a directory, which may be the copy of a repository."""
    contents, tokenizer = read_json(directory / CONFIG_NAME), read_tokenizer(directory, repo)
    with translating(directory / CONFIG_NAME):
        return read_config(contents, tokenizer=tokenizer.name)


def open_open_clip(
    directory: Path, *, file: Path | None = None, repo: str | None = None, config: ClipConfig | None = None
) -> Stored:
    """Opens a directory; see :func:`clip_models.load_pretrained`.

    Args:
        directory: holds open_clip_config.json.
        file: of the weights. None: the directory's open_clip_model.safetensors.
        repo: the repository that the directory was fetched from, None for a local one.
        config: of the model. None: what the directory says.

    Returns:
        The model.
    """
    config = config or read_directory_config(directory, repo=repo)
    files = open_safetensors([file]) if file is not None else open_directory(directory, _WEIGHTS_NAME)
    names = [name for name in files if not name.endswith("attn_mask")]  # a constant that old exports hold
    files = TensorFiles({name: files[name] for name in names})
    is_custom = any(name.startswith("text.") for name in names)
    return Stored(config, files, _sources(config, is_custom=is_custom), str(file or directory))


def find_losses(config: ClipConfig) -> list[str]:
    """Lists what open_clip cannot express of a model; nothing where it can express all."""
    if config.preprocess.resize_mode == "naflex":
        return ["preprocess.resize_mode = 'naflex'"]
    try:
        read_back: ClipConfig | str = read_config(write_config(config))
    except ValueError as error:
        read_back = str(error)
    return differences(config, read_back)


def write_open_clip(
    directory: Path, config: ClipConfig, params: Mapping[str, Any], *, dtype: str | None, has_tokenizer: bool
) -> None:
    """Writes weights and, last, the config; see :func:`clip_models.save_pretrained`.

    Args:
        directory: is there.
        config: of a model for which :func:`find_losses` finds none.
        params: its arrays.
        dtype: of the weights. None: that of the arrays.
        has_tokenizer: whether the tokenizer is in the directory.
    """
    weights = directory / f"{_WEIGHTS_NAME}.safetensors"
    sources = _sources(config, is_custom=False)
    write_params(weights, sources, config, params, dtype=dtype, metadata={"format": "pt"})
    write_json(directory / CONFIG_NAME, write_config(config, has_tokenizer=has_tokenizer))


def _sources(config: ClipConfig, *, is_custom: bool) -> Sources:
    """The source of every array; with ``is_custom``, the names of the text tower begin with ``text.``."""
    return dict(_pairs(config, "text." if is_custom else ""))


def _pairs(config: ClipConfig, text: str) -> Pairs:
    if config.has_logits:
        yield "logit_scale", Source("logit_scale")
        if config.logit_bias_init is not None:
            yield "logit_bias", Source("logit_bias")
    if (vision := config.vision) is not None:
        if vision.pool == "map":
            yield from timm_sources(vision)
            if config.projection_dim is not None:
                yield from torch_linear("vision/projection", "visual.head.proj", bias=vision.projection_bias)
        else:
            yield from torch_patches(
                "vision/patch_embedding",
                "visual.conv1",
                patch_size=vision.patch_size,
                width=vision.width,
                bias=vision.patch_bias,
            )
            yield "vision/class_embedding", Source("visual.class_embedding")
            yield "vision/position_embedding", Source("visual.positional_embedding")
            if vision.embed_norm:
                yield from torch_norm("vision/embed_norm", "visual.ln_pre")
            yield from _blocks(vision, "vision/blocks", "visual.transformer.resblocks.{layer}")
            yield from torch_norm("vision/norm", "visual.ln_post")
            yield "vision/projection/kernel", Source("visual.proj")
    if config.text is not None:
        yield "text/token_embedding", Source(f"{text}token_embedding.weight")
        yield "text/position_embedding", Source(f"{text}positional_embedding")
        yield from _blocks(config.text, "text/blocks", f"{text}transformer.resblocks.{{layer}}")
        yield from torch_norm("text/norm", f"{text}ln_final")
        if config.text.projection_bias:
            yield from torch_linear("text/projection", f"{text}text_projection")
        else:
            yield "text/projection/kernel", Source(f"{text}text_projection")


def _blocks(config: TransformerConfig, ours: str, theirs: str) -> Pairs:
    yield from torch_norm(f"{ours}/norm1", f"{theirs}.ln_1")
    yield from torch_attention(f"{ours}/attention", f"{theirs}.attn")
    yield from torch_norm(f"{ours}/norm2", f"{theirs}.ln_2")
    yield from torch_linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc")
    yield from torch_linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj")
    if config.layer_scale is not None:
        yield f"{ours}/layer_scale1", Source(f"{theirs}.ls_1.gamma")
        yield f"{ours}/layer_scale2", Source(f"{theirs}.ls_2.gamma")
