"""The tokenizer's files beside a model's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from clip_models.preprocess_config import PreprocessConfig

_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def find_tokenizer(directory: Path, repo: str | None) -> str | None:
    """Returns where a model's tokenizer is: in its repository, or in its directory if there is one; else None."""
    if repo is not None:
        return repo
    return str(directory) if any((directory / name).is_file() for name in _TOKENIZERS) else None


def needs_lower_case(directory: Path) -> bool:
    """Whether texts are to be lower-cased before the tokenizer of a directory.

    SigLIP 2 was trained on lower-cased text; Gemma's tokenizer leaves case alone, CLIP's and SigLIP's do not.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return False
    return (json.loads(path.read_text()).get("tokenizer_class") or "").startswith("Gemma")


def save_tokenizer(tokenizer: Any, directory: Path) -> bool:
    """Puts a tokenizer's files into a directory.

    Args:
        tokenizer: a directory that has them; a tokenizer of transformers, or anything else with ``save_pretrained``; or
            None. A string that is no directory is a repository's name, whose files stay where they are.
        directory: where to.

    Returns:
        Whether there are files now.

    Raises:
        TypeError: it is nothing of the kind.
        ValueError: the directory has no tokenizer.
    """
    if tokenizer is None:
        return False
    if isinstance(tokenizer, str | Path):
        source = Path(tokenizer)
        if not source.is_dir():
            return False
        found = [name for name in _FILES if (source / name).is_file()]
        if not set(found) & set(_TOKENIZERS):
            raise ValueError(f"a tokenizer's directory has one of {', '.join(_TOKENIZERS)}; {source} has none.")
        if source.resolve() != directory.resolve():
            for name in found:
                shutil.copyfile(source / name, directory / name)
            _for_older_transformers(directory / "tokenizer_config.json")
        return True
    if not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"tokenizer must be a directory, a tokenizer of transformers, or None; got {type(tokenizer)}.")
    tokenizer.save_pretrained(str(directory))
    _for_older_transformers(directory / "tokenizer_config.json")
    return True


def say_what_texts_are(directory: Path, preprocess: PreprocessConfig, *, hides_padding: bool) -> None:
    """Makes a saved tokenizer prepare texts as the model expects them, without being told at every call.

    Args:
        directory: with the tokenizer's files.
        preprocess: what the model expects.
        hides_padding: whether the attention mask is part of that. A processor hands to the model what its tokenizer
            lists, and a SigLIP that gets a mask computes something else than it was trained for.
    """
    path = directory / "tokenizer_config.json"
    contents = json.loads(path.read_text()) if path.is_file() else {}
    if preprocess.text_length:
        contents["model_max_length"] = preprocess.text_length
    contents["model_input_names"] = ["input_ids", "attention_mask"] if hides_padding else ["input_ids"]
    path.write_text(json.dumps(contents, indent=2) + "\n")
    rules = directory / "tokenizer.json"
    if preprocess.lower_case and not needs_lower_case(directory) and rules.is_file():
        tokenizer = json.loads(rules.read_text())
        then = tokenizer.get("normalizer")
        steps = then["normalizers"] if then and then["type"] == "Sequence" else [then] if then else []
        if {"type": "Lowercase"} not in steps:
            tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
            rules.write_text(json.dumps(tokenizer, ensure_ascii=False))


def _for_older_transformers(path: Path) -> None:
    """Gives a tokenizer without a class of its own the name that transformers 4 knows, and 5 still takes."""
    contents = json.loads(path.read_text()) if path.is_file() else {}
    if contents.get("tokenizer_class") == "TokenizersBackend":
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps({**contents, **names}, indent=2) + "\n")
