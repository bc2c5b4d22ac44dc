"""The inputs that a model expects, as a frozen configuration that travels with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_models.field_checks import check_at_least_zero, check_types

ResizeMode = Literal["squash", "shortest", "longest", "naflex"]
Interpolation = Literal["bicubic", "bilinear"]
Padding = Literal["max_length", "longest"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The inputs that a model expects.

    Args:
        size: side of the square image, or its (height, width), pixels. 0: the vision tower's ``image_size``.
        resize_mode: how a picture gets to that size: ``squash`` ignores its aspect, ``shortest`` scales the shorter
            side and crops the centre, ``longest`` scales the longer side and pads with black around. ``naflex`` keeps
            the aspect and cuts the picture into a sequence of at most ``max_patches`` patches.
        max_patches: length of ``naflex`` sequences. 0: as many as the vision tower's grid has.
        interpolation: of the resize, always antialiased.
        mean: subtracted from each channel, in [0, 1] units.
        std: each channel is divided by it, in [0, 1] units.
        tokenizer: a Hugging Face tokenizer, by repository name or directory. None: not known.
        text_length: tokens that a text is cut to. 0: the text tower's ``max_length``.
        padding: ``max_length`` pads every text to ``text_length``, ``longest`` to the longest of its batch.
        pad_id: token that texts are padded with. None: the tokenizer's own. open_clip pads CLIP's with 0.
        lower_case: whether texts are lower-cased before the tokenizer sees them.
        canonicalize: whether, before it too, their punctuation is removed, and what is left has single spaces: SigLIP's
            texts in open_clip, whose tokenizer does not do it by itself.
        mask_padding: whether padding is hidden from attention. Neither CLIP nor SigLIP was trained so: CLIP pools at or
            before the padding, and causally; SigLIP attends to it and pools its last position.

    References:
        Tschannen et al., SigLIP 2, 2025 (NaFlex).
    """

    size: int | tuple[int, int] = 0
    resize_mode: ResizeMode = "squash"
    max_patches: int = 0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    tokenizer: str | None = None
    text_length: int = 0
    padding: Padding = "max_length"
    pad_id: int | None = None
    lower_case: bool = False
    canonicalize: bool = False
    mask_padding: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "size", square_or_pair(self.size, "size"))
        check_at_least_zero(self, "max_patches", "text_length")
        if self.pad_id is not None and self.pad_id < 0:
            raise ValueError(f"pad_id must be a token, 0 or more, or None; got {self.pad_id}.")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} must have one number per channel, red, green, blue; got {getattr(self, name)}."
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel; got {self.std}.")


def square_or_pair(size: int | tuple[int, int], name: str) -> int | tuple[int, int]:
    """Checks a side or a (height, width), in pixels or patches, and returns a square one as its side."""
    sides = (size, size) if isinstance(size, int) else tuple(size)  # JSON has lists
    if len(sides) != 2 or min(sides) < 0:
        raise ValueError(f"{name} must be a side or a (height, width), not negative; got {size}.")
    return sides[0] if sides[0] == sides[1] else sides
