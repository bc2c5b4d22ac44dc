"""The tokenizer's files beside a model's weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from clip_models.formats.hub import download, find_cached
from clip_models.formats.stored import read_json, replacing, write_json
from clip_models.preprocess_config import PreprocessConfig

_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_NEWER_CLASSES = ("TokenizersBackend", "Siglip2Tokenizer")


class TokenizerFiles(NamedTuple):
    """What a model's directory says of its tokenizer.

    Args:
        name: where it is: the repository of the directory, or else the directory. None: there are no files of one.
        max_length: tokens that it cuts texts to. None: it does not say.
        lower_case: whether texts are to be lower-cased before it. SigLIP 2 was trained on lower-cased text; Gemma's
            tokenizer leaves case alone, CLIP's and SigLIP's do not.
        gives_mask: whether it says that the attention mask is among what it gives to the model.
    """

    name: str | None
    max_length: int | None
    lower_case: bool
    gives_mask: bool


def read_tokenizer(directory: Path, repo: str | None = None) -> TokenizerFiles:
    """Reads what a directory says of its tokenizer.

    Args:
        directory: of a model.
        repo: the repository that the directory was fetched from, None for a local one.
    """
    path = directory / "tokenizer_config.json"
    contents = read_json(path) if path.is_file() else {}
    longest = contents.get("model_max_length")
    return TokenizerFiles(
        # absolute: a config that is kept may be read from another working directory
        name=(repo or str(directory.resolve())) if _has_tokenizer(directory) else None,
        max_length=longest if isinstance(longest, int) and longest > 0 else None,
        lower_case=(contents.get("tokenizer_class") or "").startswith("Gemma"),
        gives_mask="attention_mask" in (contents.get("model_input_names") or ()),
    )


def is_repository(tokenizer: str | Path) -> bool:
    """Says whether a tokenizer is named by its repository: by a string that is neither a directory nor a path."""
    name = str(tokenizer)
    is_path = isinstance(tokenizer, Path) or name.count("/") > 1 or name.startswith((".", "/", "~"))
    return not is_path and not Path(name).is_dir()


def locate_tokenizer(tokenizer: str | Path, *, fetch: bool = True) -> Path | None:
    """Finds a tokenizer's files.

    Args:
        tokenizer: a directory that has them, or a repository's name.
        fetch: whether a repository that is not in the cache is fetched.

    Returns:
        Their directory, of a repository that in the cache. None: they are not there, and must not be fetched.

    Raises:
        ValueError: the directory, or the repository, has no tokenizer.
        FileNotFoundError: there is no such directory, or the repository could not be fetched.
    """
    directory = Path(tokenizer)
    if is_repository(tokenizer):
        cached = find_cached(str(tokenizer))
        if cached is not None and _has_tokenizer(cached):
            return cached
        if not fetch:
            return None
        directory = download(str(tokenizer), _FILES)
    elif not directory.is_dir():
        raise FileNotFoundError(
            f"a tokenizer is a directory, or a repository's name (owner/name); there is no directory {tokenizer}."
        )
    if not _has_tokenizer(directory):
        raise ValueError(f"a tokenizer's directory has one of {', '.join(_TOKENIZERS)}; {tokenizer} has none.")
    return directory


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Puts a tokenizer's files into a directory.

    Args:
        tokenizer: a directory that has them; a tokenizer of transformers, or anything else with ``save_pretrained``.
        directory: where to.

    Raises:
        TypeError: it is nothing of the kind.
    """
    if isinstance(tokenizer, Path):
        if tokenizer.resolve() == directory.resolve():
            return
        for name in _FILES:
            if (tokenizer / name).is_file():
                with replacing(directory / name) as temporary:
                    shutil.copyfile(tokenizer / name, temporary)
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(directory))
    else:
        raise TypeError(
            "tokenizer must be a directory, a repository's name, a tokenizer of transformers, or None; "
            f"got {type(tokenizer)}."
        )
    _for_older_transformers(directory)


def say_what_texts_are(directory: Path, preprocess: PreprocessConfig, *, hides_padding: bool) -> None:
    """Makes a saved tokenizer prepare texts as the model expects them, without being told at every call.

    Args:
        directory: with the tokenizer's files.
        preprocess: what the model expects.
        hides_padding: whether the attention mask is part of that. A processor hands to the model what its tokenizer
            lists, and a SigLIP that gets a mask computes something else than it was trained for.
    """
    path = directory / "tokenizer_config.json"
    contents = read_json(path) if path.is_file() else {}
    if preprocess.text_length:
        contents["model_max_length"] = preprocess.text_length
    contents["model_input_names"] = ["input_ids", "attention_mask"] if hides_padding else ["input_ids"]
    write_json(path, contents)
    rules = directory / "tokenizer.json"
    if preprocess.lower_case and not read_tokenizer(directory).lower_case and rules.is_file():
        tokenizer = read_json(rules)
        then = tokenizer.get("normalizer")
        steps = then["normalizers"] if then and then["type"] == "Sequence" else [then] if then else []
        if {"type": "Lowercase"} not in steps:
            tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
            write_json(rules, tokenizer, indent=None)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZERS)


def _for_older_transformers(directory: Path) -> None:
    """Names the class of a tokenizer whose own transformers 4 does not know by one that it does, and 5 still takes.

    All that it does is in tokenizer.json.
    """
    path = directory / "tokenizer_config.json"
    contents = read_json(path) if path.is_file() else {}
    if contents.get("tokenizer_class") in _NEWER_CLASSES and (directory / "tokenizer.json").is_file():
        contents.setdefault("model_input_names", ["input_ids", "attention_mask"])
        write_json(path, {**contents, "tokenizer_class": "PreTrainedTokenizerFast"})
