"""What the pipeline yields."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Batch"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's rows of a batch, b of them, of which ``mask`` says which are real.

    Only an evaluation holds rows that are not: their pixels are zero and their captions empty.

    Args:
        image: uint8 [b, h, w, 3], RGB in [0, 255]; with ``"naflex"`` patches, uint8 [b, p, patch · patch · 3], in the
            order of transformers' Siglip2ImageProcessor, zero after the last. None where the pipeline reads texts only.
        input_ids: int32 [b, t], or None where the pipeline has no tokenizer.
        attention_mask: int32 [b, t], 1 at tokens and 0 at padding, or None likewise.
        mask: bool [b], True for real rows.
        image_ids: int32 [b], equal for equal image bytes; a checksum, -1 where the row is not real or has no image.
        text_ids: int32 [b], equal for equal captions; likewise.
        label: int32 [b], -1 where a record has none; None where no record of the batch has one.
        key: b keys, for people.
        caption: b captions, for people.
        pixel_attention_mask: int32 [b, p], 1 at patches and 0 after the last; None without ``"naflex"``.
        spatial_shapes: int32 [b, 2], the rows and columns of patches; likewise.
        embeddings: float32 [b, e] by the field's name, of those that the config asks for; zero where a row is not real.
    """

    image: np.ndarray | None
    input_ids: np.ndarray | None
    attention_mask: np.ndarray | None
    mask: np.ndarray
    image_ids: np.ndarray
    text_ids: np.ndarray
    label: np.ndarray | None
    key: list[str]
    caption: list[str]
    pixel_attention_mask: np.ndarray | None = None
    spatial_shapes: np.ndarray | None = None
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mask)
