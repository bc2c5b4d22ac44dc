"""Retrieval: the texts of a picture and the pictures of a text, among all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from clip_data import Batch, Tokenizer
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.result import Example, Result
from clip_train.inputs import pictures_of
from clip_train.metrics import recall_at

RECALL_AT = (1, 5, 10)
NUM_EXAMPLES = 12


def retrieval(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    positives: Literal["caption", "label"] = "caption",
    name: str = "retrieval",
) -> Result:
    """Find the text of a picture and the pictures of a text, among all.

    Equal captions are one text, so that none is a wrong answer to itself.

    Args:
        encoders: the towers.
        params: of the model.
        batches: with `caption`, and `label` if that is what matches.
        tokenizer: the model's.
        positives: what counts as found: the picture's own caption, or any with its label.
        name: of the result.

    Returns:
        `text_retrieval_recall@k` is image → text and `image_retrieval_recall@k` text → image, as CLIP_benchmark names
        them, for k = 1, 5, 10.
    """
    embeds, captions, labels, pictures = [], [], [], []
    for batch in batches:
        embeds.append(encoders.images(params, batch))
        captions += [caption for caption, real in zip(batch.caption, batch.mask, strict=True) if real]
        if positives == "label":
            labels.append(_labels(batch))
        if len(pictures) < NUM_EXAMPLES:
            pictures += pictures_of(batch)
    captions = encoders.gather_items(captions)
    texts, text_of = np.unique(np.asarray(captions), return_inverse=True)
    scores = (
        encoders.gather(np.concatenate(embeds)) @ encoders.texts(params, tokenizer, texts.tolist(), batch_size=1024).T
    )
    matches = text_of[:, None] == np.arange(len(texts))
    if positives == "label":
        label = encoders.gather(np.concatenate(labels))
        # A text matches a picture when some picture with that text has the picture's label.
        matches = (
            np.eye(label.max() + 1, dtype=int)[label] @ (np.eye(label.max() + 1, dtype=int)[label].T @ matches) > 0
        )
    to_text = recall_at(scores, matches, RECALL_AT)
    to_image = recall_at(scores.T, matches.T, RECALL_AT)
    return Result(
        name=name,
        task="zeroshot_retrieval",
        num_samples=len(captions),
        metrics={
            **{f"text_retrieval_recall@{k}": value for k, value in to_text.items()},
            **{f"image_retrieval_recall@{k}": value for k, value in to_image.items()},
        },
        # Of several processes the first has its own pictures, whose rows come first.
        examples=_examples(pictures[:NUM_EXAMPLES], captions, texts, scores, matches),
    )


def _labels(batch: Batch) -> np.ndarray:
    if not batch.mask.any():  # as of one of several processes, where the samples end in another's part
        return np.zeros(0, np.int32)
    labels = None if batch.label is None else batch.label[batch.mask]
    if labels is None or (labels < 0).any():
        raise ValueError("retrieval by label needs a label with every sample; set label_key to its field")
    return labels


def _examples(
    pictures: Sequence[np.ndarray], captions: Sequence[str], texts: np.ndarray, scores: np.ndarray, matches: np.ndarray
) -> tuple[Example, ...]:
    best = np.argsort(-scores[: len(pictures)], axis=1, kind="stable")[:, :3]
    return tuple(
        Example(
            image=picture,
            caption=captions[i],
            matches=tuple((str(texts[j]), float(scores[i, j]), bool(matches[i, j])) for j in best[i]),
        )
        for i, picture in enumerate(pictures)
    )
