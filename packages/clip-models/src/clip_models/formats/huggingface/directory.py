"""Hugging Face directories: opened, and written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from clip_models.config import ClipConfig, PreprocessConfig
from clip_models.formats.differences import differences
from clip_models.formats.huggingface.config import read_config, write_config
from clip_models.formats.huggingface.kinds import KINDS
from clip_models.formats.huggingface.processor import read_processor, read_processor_files, write_processor
from clip_models.formats.huggingface.weights import sources
from clip_models.formats.params_io import write_params
from clip_models.formats.stored import Stored, open_directory, translating, write_json
from clip_models.formats.tensor_file import TensorFiles
from clip_models.formats.tokenizer import TokenizerFiles, read_tokenizer

# Indices of positions, in CLIP's first exports, and what stands for masked patches in pretraining: no part of a tower.
_NO_WEIGHTS = (".position_ids", "embeddings.mask_token")
_HEADS = ("classifier.", "pooler.")


def read_directory_config(directory: Path, contents: Mapping[str, Any], *, repo: str | None) -> ClipConfig:
    """Reads a directory's config, without its weights where they do not matter.

    Args:
        directory: holds config.json, and the weights where the model is a tower of CLIP alone.
        contents: of config.json, with a ``model_type`` of :data:`KINDS`.
        repo: the repository that the directory was fetched from, None for a local one.

    Returns:
        The config.
    """
    kind = KINDS[contents["model_type"]]
    is_classifier = any(name.endswith("ForImageClassification") for name in contents.get("architectures") or ())
    is_projected = kind.has_vision and kind.has_text and not is_classifier
    if kind.projected_class is not None:
        is_projected = any("projection" in name for name in open_directory(directory))
    preprocess = PreprocessConfig()
    if kind.has_vision:
        path, processor = read_processor_files(directory)
        with translating(path):
            preprocess = read_processor(kind.family, processor)
    with translating(directory / "config.json"):
        config = read_config(contents, preprocess, has_text=not is_classifier, is_projected=is_projected)
    if config.text is None:
        return config
    return replace(config, preprocess=_with_texts(config, read_tokenizer(directory, repo)))


def open_huggingface(
    directory: Path, contents: Mapping[str, Any], *, repo: str | None, config: ClipConfig | None
) -> Stored:
    """Opens a directory; see :func:`clip_models.load_pretrained`.

    Args:
        directory: holds config.json and model.safetensors, or its shards and their index.
        contents: of config.json.
        repo: as in :func:`read_directory_config`.
        config: of the model. None: what the directory says.

    Returns:
        The model.
    """
    model_type = contents["model_type"]
    config = config or read_directory_config(directory, contents, repo=repo)
    files = open_directory(directory)
    heads = [name for name in files if name.removeprefix(f"{model_type}.").startswith(_HEADS)]
    if heads:
        warnings.warn(
            f"{directory} holds a head, which is no part of the towers and is left out: "
            + ", ".join(f"{name} {list(files[name].shape)}" for name in heads),
            stacklevel=4,
        )
    names = [name for name in files if name not in heads and not name.endswith(_NO_WEIGHTS)]
    files = TensorFiles({name: files[name] for name in names})
    prefixes = ("vision_model.", "text_model.", f"{model_type}.")
    prefixed = any(name.startswith(prefixes) for name in names)
    return Stored(config, files, sources(model_type, config, prefixed=prefixed), str(directory))


def find_model_type(config: ClipConfig) -> tuple[str, list[str]]:
    """Finds the model type that says most of a config.

    Args:
        config: of a model.

    Returns:
        The type, and what it cannot express; nothing where it can express all.
    """
    towers = (config.vision is not None, config.text is not None)
    read_back = {
        name: _as_read_back(name, config) for name, kind in KINDS.items() if (kind.has_vision, kind.has_text) == towers
    }
    lost = {name: differences(config, theirs) for name, theirs in read_back.items()}
    best = min(lost, key=lambda name: (isinstance(read_back[name], str), len(lost[name])))
    return best, lost[best]


def write_huggingface(
    directory: Path, config: ClipConfig, params: Mapping[str, Any], *, model_type: str, dtype: str | None
) -> None:
    """Writes weights, processors and config, the config last; see :func:`clip_models.save_pretrained`.

    Args:
        directory: is there.
        config: of the model.
        params: its arrays.
        model_type: from :func:`find_model_type`.
        dtype: of the weights. None: that of the arrays.
    """
    kind = KINDS[model_type]
    write_params(
        directory / "model.safetensors",
        sources(model_type, config),
        config,
        params,
        dtype=dtype,
        metadata={"format": "pt"},
    )
    processor = write_processor(model_type, config)
    if processor:
        name = {"processor_class": kind.processor_class} if kind.processor_class else {}
        write_json(directory / "preprocessor_config.json", {**processor, **name})
        write_json(directory / "processor_config.json", {"image_processor": processor, **name})
    dtypes = {dtype} if dtype else {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    stored = {"dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    write_json(directory / "config.json", {**write_config(model_type, config), **stored})


def example_program(model_type: str, config: ClipConfig) -> str:
    """Returns Python that opens a directory which :func:`write_huggingface` wrote, for its model card."""
    model_class = write_config(model_type, config)["architectures"][0]
    processor = {True: "AutoProcessor", False: "AutoImageProcessor"}[config.text is not None]
    names = [model_class] + [processor] * (config.vision is not None)
    lines = [f"from transformers import {', '.join(sorted(names))}", ""]
    options = ", add_pooling_layer=False" if model_class == "ViTModel" else ""  # it would get random weights
    lines += [f'model = {model_class}.from_pretrained("DIRECTORY"{options})']
    lines += [f'processor = {processor}.from_pretrained("DIRECTORY")'] * (config.vision is not None)
    return "\n".join(lines)


def _with_texts(config: ClipConfig, tokenizer: TokenizerFiles) -> PreprocessConfig:
    """What a model expects, with what its tokenizer's files say of texts."""
    longest = config.preprocess.text_length
    return replace(
        config.preprocess,
        tokenizer=tokenizer.name,
        lower_case=tokenizer.lower_case,
        text_length=min(longest, tokenizer.max_length or longest),
        # where no token sees what follows it, padding is hidden anyway
        mask_padding=tokenizer.gives_mask and config.text is not None and not config.text.causal,
    )


def _as_read_back(model_type: str, config: ClipConfig) -> ClipConfig | str:
    """What a type's files would say of a model; or why they could not be read."""
    try:
        contents = write_config(model_type, config)
        processor = write_processor(model_type, config)
        preprocess = read_processor(KINDS[model_type].family, processor)
        return read_config(contents, preprocess, is_projected=config.projection_dim is not None)
    except ValueError as error:
        return str(error)
