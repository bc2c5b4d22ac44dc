"""Captions to token ids, by any tokenizer that ``transformers`` can open.

``transformers`` is imported when a tokenizer is opened, and not before.
"""

from __future__ import annotations

import itertools
import logging
import os
import string
import threading
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

__all__ = ["Padding", "Tokenizer"]

Padding = Literal["max_length", "longest"]

_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


class TextsExpected(Protocol):
    """What texts become: fields of `DataConfig`, and of `ClipConfig.preprocess` in clip_models, as in `Tokenizer`."""

    @property
    def tokenizer(self) -> str | None: ...
    @property
    def text_length(self) -> int: ...
    @property
    def lower_case(self) -> bool: ...
    @property
    def canonicalize(self) -> bool: ...
    @property
    def padding(self) -> Padding: ...
    @property
    def pad_id(self) -> int | None: ...


class Tokenizer:
    """A tokenizer with everything about the shape of its output decided.

    Args:
        name_or_path: A directory, or the name of a repository on the Hugging Face Hub.
        text_length: Tokens that a text is cut to; the tokenizer's own closing token is kept.
        lower_case: Whether texts are lower-cased first.
        canonicalize: Whether ASCII punctuation is removed first, underscores become spaces, and runs of spaces one.
            With ``lower_case`` it is what SigLIP's texts went through; the tokenizer of ``google/siglip-*`` does it
            itself, one that open_clip converted does not.
        padding: ``"max_length"`` pads to ``text_length``, ``"longest"`` to the longest text of a call.
        pad_id: Token to pad with; None takes the tokenizer's. open_clip's own tokenizer of CLIP pads with 0.

    What opens and closes a text is the tokenizer's to say: T5's closes it, Gemma's as its files say, CLIP's does both.
    Padding and cuts are on the right.

    Raises:
        ValueError: A value outside what is said above; no tokenizer there; none to pad with.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        text_length: int,
        lower_case: bool = False,
        canonicalize: bool = False,
        padding: Padding = "max_length",
        pad_id: int | None = None,
    ):
        if text_length < 1:
            raise ValueError(f"text_length must be at least 1, not {text_length}")
        if padding not in ("max_length", "longest"):
            raise ValueError(f"padding must be max_length or longest, not {padding!r}")
        self.name_or_path, self.text_length, self.padding = name_or_path, text_length, padding
        self.lower_case, self.canonicalize = lower_case, canonicalize
        self._tokenizer = _open(name_or_path)
        self._tokenizer.padding_side = self._tokenizer.truncation_side = "right"
        pad = self._tokenizer.pad_token_id if pad_id is None else pad_id
        if pad is None:
            raise ValueError(f"the tokenizer {name_or_path} has no padding token; give pad_id")
        self.pad_id: int = pad
        self.vocab_size: int = 1 + max(pad, *self._tokenizer.get_vocab().values())
        least = self._tokenizer.num_special_tokens_to_add()
        if text_length < least:
            raise ValueError(
                f"text_length must leave room for the {least} tokens that open and close each text of "
                f"{name_or_path}; got {text_length}"
            )
        self._backend: Any = self._tokenizer.backend_tokenizer if self._tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.enable_truncation(text_length)
            self._backend.no_padding()
        self._lock = threading.Lock()

    @staticmethod
    def of(config: TextsExpected) -> Tokenizer | None:
        """Returns the tokenizer that a config names, a `DataConfig` or a model's `preprocess`; None: it names none."""
        if config.tokenizer is None:
            return None
        return Tokenizer(
            config.tokenizer,
            text_length=config.text_length,
            lower_case=config.lower_case,
            canonicalize=config.canonicalize,
            padding=config.padding,
            pad_id=config.pad_id,
        )

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises texts.

        Args:
            texts: n of them.

        Returns:
            input_ids int32 [n, t] and attention_mask int32 [n, t], 1 at tokens and 0 at padding.
        """
        texts = [self._clean(text) for text in texts]
        if not texts:
            return np.zeros((0, self.text_length), np.int32), np.zeros((0, self.text_length), np.int32)
        rows = self._encode(texts)
        width = self.text_length if self.padding == "max_length" else max(map(len, rows))
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        is_token = np.arange(width) < lengths[:, None]
        input_ids = np.full((len(rows), width), self.pad_id, np.int32)
        input_ids[is_token] = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return input_ids, is_token.astype(np.int32)

    def _clean(self, text: str) -> str:
        if self.canonicalize:
            text = text.translate(_PUNCTUATION)
        if self.lower_case:
            text = text.lower()
        return " ".join(text.split()) if self.canonicalize else text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:  # what transformers adds to it takes as long again
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]
        with self._lock:
            return self._tokenizer(texts, truncation=True, max_length=self.text_length)["input_ids"]


def _open(name_or_path: str) -> Any:
    is_directory = os.path.isdir(name_or_path)
    looks_like_path = name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~"))
    if looks_like_path and not is_directory:  # no repository is called so: say it without asking the Hub
        raise ValueError(f"there is no tokenizer directory {name_or_path!r}")
    # Tokenizers need no PyTorch, whose absence transformers announces on import.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    # It reads the model's config beside the tokenizer too, and warns of ids in it that SigLIP's own defaults have.
    remarks = logging.getLogger("transformers.configuration_utils")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(name_or_path, local_files_only=is_directory)
    except (OSError, ValueError) as error:
        place = "the directory" if is_directory else "the Hugging Face Hub, its cache or a directory"
        summary = str(error).strip().splitlines()[0]
        raise ValueError(f"no tokenizer {name_or_path!r} in {place}: {summary}") from error
    finally:
        remarks.setLevel(level)
