"""Weights in and out: one door, with the formats behind it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from clip_models.config import ClipConfig, Dtype
from clip_models.formats import huggingface, native, open_clip
from clip_models.formats.big_vision import open_big_vision
from clip_models.formats.hub import download
from clip_models.formats.model_card import write_model_card
from clip_models.formats.params_io import check_params, read_params
from clip_models.formats.run import config_of_run, find_run, read_run
from clip_models.formats.stored import Stored, read_json
from clip_models.formats.tokenizer import locate_tokenizer, save_tokenizer, say_what_texts_are
from clip_models.params import Params

Format = Literal["auto", "clip-jax", "huggingface", "open_clip"]

# What a repository holds besides weights, which are fetched when it is known in which file they are.
_SMALL_FILES = ["*.json", "*.txt", "*.model"]


def load_pretrained(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: Dtype = "float32",
    shardings: Any = None,
    config: ClipConfig | None = None,
) -> tuple[ClipConfig, Params]:
    """Reads a model, of any format that is known by its files.

    Directories of :func:`save_pretrained`; of Hugging Face's transformers 4 and 5, of type ``clip``, ``siglip`` and
    ``siglip2``, or of one of their towers alone, or ``vit``, ``dinov2`` and ``dinov2_with_registers``, which make an
    image tower without a projection. A classifier's head is left out, with a warning. Directories of open_clip, or
    its weights beside their ``open_clip_config.json``. ``.npz`` files of big_vision's SigLIP and SigLIP 2. And the
    directory of a run of ``clip-train``, under way or finished: its newest checkpoint, the moving averages where the
    run evaluates these.

    Weights are mapped, and each array is placed once: more memory than the parameters need is not taken.

    Args:
        path_or_repo: a directory or file or, where there is none of that name, a repository on the Hugging Face Hub,
            which is downloaded once and kept in the Hub's cache.
        dtype: of the parameters.
        shardings: where they go: one sharding for all, or a tree of one for each, as ``clip_sharding.shardings`` makes
            it from :func:`load_config`, ``logical_axes`` and the shapes. Each device gets its share, and the process
            reads no more. None: the default device.
        config: of the model, in place of the one beside the weights. An npz has none: it is inferred from the arrays,
            with images of the size that the patches cover, unless it is given.

    Returns:
        (config, params).

    Raises:
        FileNotFoundError: no directory, no repository, or one without a config or weights in safetensors.
        ValueError: it holds a model of another type, or its tensors are not those of its config; all that are missing,
            extra or misshapen are named. Or a run's newest checkpoint is torn.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be of floating-point numbers, such as float32 or bfloat16; got {dtype!r}.")
    place = _locate(path_or_repo)
    if place.file is None and (run := find_run(place.directory)) is not None:
        return read_run(place.directory, run, config=config, dtype=dtype, shardings=shardings)
    stored = _open(place, config)
    params = read_params(
        stored.files, stored.sources, stored.config, dtype=dtype, shardings=shardings, where=stored.where
    )
    return stored.config, params


def load_config(path_or_repo: str | os.PathLike[str]) -> ClipConfig:
    """Reads what a model is, and no weights.

    Args:
        path_or_repo: as in :func:`load_pretrained`.

    Returns:
        The config that :func:`load_pretrained` returns.

    Raises:
        FileNotFoundError: as there.
        ValueError: as there, except for the tensors.
    """
    place = _locate(path_or_repo)
    if place.file is None and (run := find_run(place.directory)) is not None:
        return config_of_run(run)
    if place.file is not None or not (place.directory / "config.json").is_file():
        if place.file is None and (place.directory / open_clip.CONFIG_NAME).is_file():
            return open_clip.read_directory_config(place.directory, repo=place.repo)
        return _open(place, None).config
    contents = _read_config_file(place)
    if contents["model_type"] == native.MODEL_TYPE:
        return native.read_directory_config(place.directory, contents, repo=place.repo)
    if huggingface.KINDS[contents["model_type"]].projected_class is None:
        return huggingface.read_directory_config(place.directory, contents, repo=place.repo)
    return _open(place, None).config  # whether CLIP's tower has a projection, its tensors say


def save_pretrained(
    directory: str | os.PathLike[str],
    config: ClipConfig,
    params: Mapping[str, Any],
    *,
    format: Format = "clip-jax",
    tokenizer: Any = None,
    dtype: Dtype | None = None,
) -> None:
    """Writes a model, as :func:`load_pretrained` and, by the format, PyTorch's libraries open it.

    ``clip-jax``, our own, holds any architecture. ``huggingface`` is a directory that transformers 4 and 5 open with
    ``AutoModel`` and ``AutoProcessor``, ``open_clip`` one that open_clip opens as ``local-dir:…``. ``auto`` is the
    first of the two that can express the architecture, and where none can, after a warning that says what stands
    against it, our own.

    Every file is replaced when its successor is whole, and the config comes last. The tokenizer's files come along, so
    that the directory can be moved. Those of a repository are taken from the Hub's cache, or else fetched; our own
    format, which can name the repository, does not fetch them.

    Args:
        directory: made if it is not there; files of the same names are replaced.
        config: of the model.
        params: its arrays, all of them.
        format: of the files.
        tokenizer: to be saved along: a directory that has a tokenizer's files, a repository's name, or a tokenizer of
            transformers. None: ``config.preprocess.tokenizer``; a warning says so if its files are not to be had.
        dtype: of the weights. None: that of the arrays.

    Raises:
        ValueError: the arrays are not those of the config; or the format cannot express it, and what stands against it
            is named; or ``tokenizer`` is a place that has none.
        FileNotFoundError: ``tokenizer`` is no directory that is there, and no repository that could be fetched.
    """
    directory = Path(directory)
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}; got {format!r}.")
    format, model_type = _choose_format(format, config)
    check_params(config, params)
    tokenizer = _tokenizer_of(config, format) if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        tokenizer = locate_tokenizer(tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    if has_tokenizer := tokenizer is not None:
        save_tokenizer(tokenizer, directory)
    if format == "clip-jax":
        native.write_native(directory, config, params, dtype=dtype)
    elif format == "open_clip":
        program = open_clip.EXAMPLE_PROGRAM
        write_model_card(directory, config, program=program, library="open_clip", has_tokenizer=has_tokenizer)
        open_clip.write_open_clip(directory, config, params, dtype=dtype, has_tokenizer=has_tokenizer)
    else:
        if has_tokenizer:
            hides_padding = config.preprocess.mask_padding or (config.text is not None and config.text.causal)
            say_what_texts_are(directory, config.preprocess, hides_padding=hides_padding)
        program = huggingface.example_program(model_type, config)
        write_model_card(directory, config, program=program, library="transformers", has_tokenizer=has_tokenizer)
        huggingface.write_huggingface(directory, config, params, model_type=model_type, dtype=dtype)


def _choose_format(format: Format, config: ClipConfig) -> tuple[Format, str]:
    """Returns the format to write, ``auto`` decided, and Hugging Face's model type."""
    if format == "clip-jax":
        return format, ""
    model_type, against_huggingface = huggingface.find_model_type(config)
    against_open_clip = open_clip.find_losses(config)
    refusals = {
        "huggingface": f"Hugging Face's {model_type} cannot express {', '.join(against_huggingface)}",
        "open_clip": f"open_clip cannot express {', '.join(against_open_clip)}",
    }
    losses = {"huggingface": against_huggingface, "open_clip": against_open_clip}
    if format == "auto":
        for candidate in ("huggingface", "open_clip"):
            if not losses[candidate]:
                return candidate, model_type
        warnings.warn(f"{'; '.join(refusals.values())}: the model is saved in our own format.", stacklevel=3)
        return "clip-jax", ""
    if losses[format]:
        raise ValueError(f"{refusals[format]}: change the model, or save it with format='clip-jax'.")
    return format, model_type


def _tokenizer_of(config: ClipConfig, format: Format) -> Path | None:
    """Finds the files of a model's own tokenizer, as far as its format has a use for them."""
    known = config.preprocess.tokenizer
    if known is None or (config.text is None and config.decoder is None):
        return None
    if format == "open_clip" and known == open_clip.CLIP_TOKENIZER:
        return None  # it is built in
    try:
        return locate_tokenizer(known, fetch=format != "clip-jax")
    except (ValueError, FileNotFoundError) as error:
        warnings.warn(f"the model is saved without its tokenizer, {known}: {error} Or give tokenizer=.", stacklevel=3)
        return None


class _Place(NamedTuple):
    """Where a model is: in a directory, which may be the copy of a repository, or in one file of it."""

    directory: Path
    file: Path | None = None
    repo: str | None = None


def _locate(path_or_repo: str | os.PathLike[str]) -> _Place:
    path = Path(path_or_repo)
    if path.is_dir():
        return _Place(path)
    if path.is_file():
        return _Place(path.parent, file=path)
    return _Place(_download(str(path_or_repo), _SMALL_FILES), repo=str(path_or_repo))


def _open(place: _Place, config: ClipConfig | None) -> Stored:
    if place.file is not None and place.file.suffix == ".npz":
        return open_big_vision(place.file, config=config)
    is_open_clip = (place.directory / open_clip.CONFIG_NAME).is_file()
    if place.file is not None:
        if place.file.suffix != ".safetensors" or not is_open_clip:
            raise ValueError(
                f"a file must be big_vision's .npz, or open_clip's .safetensors beside its {open_clip.CONFIG_NAME}; "
                f"got {place.file}: give the directory."
            )
        return open_clip.open_open_clip(place.directory, file=place.file, config=config)
    if is_open_clip and not (place.directory / "config.json").is_file():
        if place.repo is not None:
            _download(place.repo, ["open_clip_model*.safetensors"])
        return open_clip.open_open_clip(place.directory, repo=place.repo, config=config)
    contents = _read_config_file(place)
    if place.repo is not None:
        _download(place.repo, ["model*.safetensors"])
    if contents["model_type"] == native.MODEL_TYPE:
        return native.open_native(place.directory, contents, repo=place.repo, config=config)
    return huggingface.open_huggingface(place.directory, contents, repo=place.repo, config=config)


def _read_config_file(place: _Place) -> Mapping[str, Any]:
    path = place.directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"a model needs config.json; {place.repo or place.directory} has none.")
    contents = read_json(path)
    known = (native.MODEL_TYPE, *huggingface.KINDS)
    if contents.get("model_type") not in known:
        raise ValueError(
            f"model_type must be one of {', '.join(known)}; {place.repo or place.directory}/config.json says "
            f"{contents.get('model_type')!r}."
        )
    return contents


def _download(repo: str, patterns: list[str]) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise FileNotFoundError(f"{repo} is neither a directory nor a repository's name (owner/name).")
    return download(repo, patterns)
