"""Retrieval: the texts of a picture and the pictures of a text, among all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from clip_data import Batch, Tokenizer
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.result import Example, Result
from clip_train.evaluate.targets import lists
from clip_train.inputs import pictures_of
from clip_train.ranking import Positives, ranking_metrics

RECALL_AT = (1, 5, 10)
NUM_EXAMPLES = 12


def retrieval(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    positives: Literal["pair", "caption", "label"] = "pair",
    name: str = "retrieval",
) -> Result:
    """Find the texts of a picture and the picture of a text, among all.

    Args:
        encoders: the towers.
        params: of the model.
        batches: with the lists of `AllCaptions` in `caption`, and `label` if that is what matches.
        tokenizer: the model's.
        positives: what counts as found: with `pair`, which is CLIP_benchmark's, a picture's own captions, each of which
            is a text. With `caption` and `label`, equal captions are one text, so that none is a wrong answer to
            itself, and right is any picture's with the caption, or the label.
        name: of the result.

    Returns:
        `text_retrieval_…` is image → text and `image_retrieval_…` text → image, as CLIP_benchmark names them:
        `recall@k` for k = 1, 5, 10, `mean_rank`, `median_rank`.
    """
    embeds, captions, labels, pictures = [], [], [], []
    for batch in batches:
        embeds.append(encoders.images(params, batch))
        captions += lists(batch.caption, batch.mask)
        if positives == "label":
            labels.append(_labels(batch))
        if len(pictures) < NUM_EXAMPLES:
            pictures += pictures_of(batch)
    captions: list[list[str]] = encoders.gather_items(captions)
    images = encoders.gather(np.concatenate(embeds))
    text_of = [text for own in captions for text in own]
    picture_of = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    if positives == "pair":
        texts = text_of
        everything = np.arange(len(captions))

        def to_texts(rows: slice) -> np.ndarray:
            return everything[rows, None] == picture_of

        def to_images(rows: slice) -> np.ndarray:
            return picture_of[rows, None] == everything

    else:
        unique, numbers = np.unique(np.asarray(text_of), return_inverse=True)
        texts = unique.tolist()
        kinds = np.arange(len(captions)) if positives == "caption" else encoders.gather(np.concatenate(labels))
        has_text = np.zeros((kinds.max() + 1, len(texts)), bool)
        has_text[kinds[picture_of], numbers] = True

        def to_texts(rows: slice) -> np.ndarray:
            return has_text[kinds[rows]]

        def to_images(rows: slice) -> np.ndarray:
            return has_text[:, rows].T[:, kinds]

    text_embeds = encoders.texts(params, tokenizer, texts, batch_size=1024)
    text_retrieval = ranking_metrics(images, text_embeds, to_texts, RECALL_AT)
    image_retrieval = ranking_metrics(text_embeds, images, to_images, RECALL_AT)
    return Result(
        name=name,
        task="zeroshot_retrieval",
        num_samples=len(captions),
        metrics={
            **{f"image_retrieval_{metric}": value for metric, value in image_retrieval.items()},
            **{f"text_retrieval_{metric}": value for metric, value in text_retrieval.items()},
        },
        # Of several processes the first has its own pictures, whose rows come first.
        examples=_examples(pictures[:NUM_EXAMPLES], captions, texts, images, text_embeds, to_texts),
    )


def _labels(batch: Batch) -> np.ndarray:
    if not batch.mask.any():  # as of one of several processes, where the samples end in another's part
        return np.zeros(0, np.int32)
    labels = None if batch.label is None else batch.label[batch.mask]
    if labels is None or (labels < 0).any():
        raise ValueError("retrieval by label needs a label with every sample; set label_key to its field")
    return labels


def _examples(
    pictures: Sequence[np.ndarray],
    captions: list[list[str]],
    texts: list[str],
    images: np.ndarray,
    text_embeds: np.ndarray,
    to_texts: Positives,
) -> tuple[Example, ...]:
    rows = slice(0, len(pictures))
    scores, right = images[rows] @ text_embeds.T, to_texts(rows)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    return tuple(
        Example(
            image=picture,
            caption=captions[i][0],
            matches=tuple((texts[j], float(scores[i, j]), bool(right[i, j])) for j in best[i]),
        )
        for i, picture in enumerate(pictures)
    )
