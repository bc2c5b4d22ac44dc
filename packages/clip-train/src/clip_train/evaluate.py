"""Zero-shot classification and retrieval of a two-tower model on held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from clip_data import Batch, DataConfig, Pipeline, SourceConfig, Tokenizer
from clip_models import ClipConfig, encode_image, encode_text
from clip_sharding import BATCH_AXES, to_global
from clip_train.inputs import image_arrays, image_inputs, pictures_of
from clip_train.metrics import classification_metrics, confusion_matrix, recall_at
from clip_train.optimizers.schedule import Length, check_length

RECALL_AT = (1, 5, 10)
NUM_EXAMPLES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation, run at the end and on the way if `every` says so.

    Attributes:
        name: what its results are called.
        task: `zeroshot_classification` by text prompts, or `zeroshot_retrieval` both ways.
        data: where the samples are; classification needs labels, retrieval captions.
        every: how much training between two evaluations; `None` is at the end only.
        classnames: a file with one name per line, or the names; by default `classnames.txt` beside the shards or in the
            folder above, as CLIP_benchmark lays it out.
        templates: likewise the prompts, each with `{c}` for the name; by default
            `zeroshot_classification_templates.txt`.
        positives: what retrieval counts as a match: the same `caption`, or the same `label`.
        batch_size: images encoded at once over all devices.
    """

    name: str
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    data: SourceConfig
    every: Length | None = None
    classnames: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] | None = None
    positives: Literal["caption", "label"] = "caption"
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no length and batches below one."""
        if self.every is not None:
            check_length(self.every, "every")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")


@dataclasses.dataclass(frozen=True)
class Example:
    """One held-out picture and the texts that the model finds most like it.

    Attributes:
        image: uint8 `[h, w, 3]`.
        caption: its own.
        matches: `(text, cosine similarity, is it right)`, best first.
    """

    image: np.ndarray
    caption: str
    matches: tuple[tuple[str, float, bool], ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one evaluation found.

    Attributes:
        name: the evaluation's.
        task: likewise.
        num_samples: how many were evaluated, each once.
        metrics: by CLIP_benchmark's names.
        classnames: for classification.
        confusion: int `[c, c]`, rows the true class; for classification.
        examples: for retrieval.
    """

    name: str
    task: str
    num_samples: int
    metrics: dict[str, float]
    classnames: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    examples: tuple[Example, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Class names and the sentences made of them.

    Attributes:
        classnames: one per class, in label order.
        templates: each with `{c}`.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    def of(self, classname: str) -> list[str]:
        """The sentences for one class."""
        return [template.format(c=classname) for template in self.templates]


class Encoders:
    """A model's two towers, compiled for a mesh; they take host batches and give host embeddings."""

    def __init__(self, model: ClipConfig, mesh: Mesh) -> None:
        self._mesh = mesh
        self._num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._image = jax.jit(lambda params, arrays: encode_image(model, params, **image_inputs(model, arrays)))
        masks = model.preprocess.mask_padding
        self._text = jax.jit(lambda params, ids, mask: encode_text(model, params, ids, mask if masks else None))

    def batch_size(self, wanted: int) -> int:
        """The nearest batch size, upwards, that divides over the devices."""
        return -(-wanted // self._num_shards) * self._num_shards

    def images(self, params: Any, batch: Batch) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of the real rows of a batch."""
        return np.asarray(self._image(params, to_global(image_arrays(batch), self._mesh)))[batch.mask]

    def texts(self, params: Any, tokenizer: Tokenizer, sentences: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of n sentences."""
        batch_size = self.batch_size(min(batch_size, len(sentences)))
        chunks = []
        for start in range(0, len(sentences), batch_size):
            ids, mask = tokenizer(sentences[start : start + batch_size])
            padding = ((0, batch_size - len(ids)), (0, 0))
            placed = to_global((np.pad(ids, padding, mode="edge"), np.pad(mask, padding, mode="edge")), self._mesh)
            chunks.append(np.asarray(self._text(params, *placed))[: len(ids)])
        return np.concatenate(chunks)


def read_prompts(config: EvaluationConfig) -> Prompts:
    """The class names and templates that a config names, or that lie beside its shards.

    Args:
        config: of a classification.

    Raises:
        ValueError: they are nowhere, empty, or a template lacks `{c}`.
    """
    classnames = read_classnames(config.classnames, config.data)
    filename = "zeroshot_classification_templates.txt"
    templates = _lines(config.templates, "templates", filename, _folders(config.data))
    if wrong := [template for template in templates if "{c}" not in template]:
        raise ValueError(f"a template holds {{c}} where the class name goes; got {wrong[0]!r}")
    return Prompts(classnames=classnames, templates=templates)


def read_classnames(given: str | tuple[str, ...] | None, source: SourceConfig) -> tuple[str, ...]:
    """The class names, in label order.

    Args:
        given: the names, a file with one per line, or `None`: `classnames.txt` beside the shards or a folder up.
        source: the labelled samples.

    Raises:
        ValueError: they are nowhere, or empty.
    """
    return _lines(given, "classnames", "classnames.txt", _folders(source))


def zero_shot(
    encoders: Encoders,
    params: Any,
    batches: Iterable[Batch],
    prompts: Prompts,
    tokenizer: Tokenizer,
    *,
    name: str = "zeroshot",
) -> Result:
    """Classify pictures by the nearest class in words.

    Each class is the mean of its prompts' unit-norm embeddings, normalised again.

    Args:
        encoders: the towers.
        params: of the model.
        batches: with `label`; rows whose `mask` is false are left out.
        prompts: class names, in label order, and templates.
        tokenizer: the model's.
        name: of the result.

    Raises:
        ValueError: a sample has no label, or one that is no class.

    References:
        Radford et al., arXiv 2103.00020, §3.1.4, for prompt ensembling.
    """
    num_classes, num_templates = len(prompts.classnames), len(prompts.templates)
    sentences = [sentence for classname in prompts.classnames for sentence in prompts.of(classname)]
    embeds = encoders.texts(params, tokenizer, sentences, batch_size=1024)
    classes = embeds.reshape(num_classes, num_templates, -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)

    logits, labels = [], []
    for batch in batches:
        labels.append(labels_of(batch, num_classes))
        logits.append(encoders.images(params, batch) @ classes.T)
    scores, truth = np.concatenate(logits), np.concatenate(labels)
    return Result(
        name=name,
        task="zeroshot_classification",
        num_samples=len(truth),
        metrics=classification_metrics(scores, truth),
        classnames=prompts.classnames,
        confusion=confusion_matrix(scores.argmax(axis=1), truth, num_classes),
    )


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
            if batch.label is None or (batch.label[batch.mask] < 0).any():
                raise ValueError("retrieval by label needs a label with every sample; set label_key to its field")
            labels.append(batch.label[batch.mask])
        if len(pictures) < NUM_EXAMPLES:
            pictures += pictures_of(batch)
    texts, text_of = np.unique(np.asarray(captions), return_inverse=True)
    scores = np.concatenate(embeds) @ encoders.texts(params, tokenizer, texts.tolist(), batch_size=1024).T
    matches = text_of[:, None] == np.arange(len(texts))
    if positives == "label":
        label = np.concatenate(labels)
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
        examples=_examples(pictures[:NUM_EXAMPLES], captions, texts, scores, matches),
    )


def labels_of(batch: Batch, num_classes: int) -> np.ndarray:
    """The labels of a batch's real rows, int32 `[n]`.

    Raises:
        ValueError: a sample has no label, or one that is no class.
    """
    labels = None if batch.label is None else batch.label[batch.mask]
    if labels is None or (labels < 0).any():
        raise ValueError("classification needs an integer label with every sample; set label_key to its field")
    if (largest := labels.max(initial=0)) >= num_classes:
        raise ValueError(f"labels go from 0 to {num_classes - 1} for {num_classes} class names; got {largest}")
    return labels


def evaluation_data(config: EvaluationConfig, data: DataConfig, encoders: Encoders) -> Pipeline:
    """The pipeline of one evaluation: every sample once, in order, prepared as the model expects."""
    # Classification reads no captions: samples without one count too.
    tokenizer = None if config.task == "zeroshot_classification" else data.tokenizer
    return Pipeline(
        dataclasses.replace(data, sources=(config.data,), shuffle=False, num_epochs=1, tokenizer=tokenizer),
        global_batch_size=encoders.batch_size(config.batch_size),
    )


def evaluate(
    config: EvaluationConfig, encoders: Encoders, params: Any, data: DataConfig, tokenizer: Tokenizer
) -> Result:
    """Run one evaluation from its config.

    Args:
        config: which.
        encoders: the towers.
        params: of the model.
        data: how samples are prepared; its sources are not read.
        tokenizer: the model's.
    """
    with evaluation_data(config, data, encoders) as pipeline:
        if config.task == "zeroshot_retrieval":
            return retrieval(encoders, params, pipeline, tokenizer, positives=config.positives, name=config.name)
        prompts = read_prompts(config)
        return zero_shot(encoders, params, pipeline, prompts, tokenizer, name=config.name)


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


def _folders(source: SourceConfig) -> list[Path]:
    parents = [Path(pattern).parent for pattern in source.patterns]
    return list(dict.fromkeys(folder for parent in parents for folder in (parent, parent.parent)))


def _lines(given: str | tuple[str, ...] | None, field: str, filename: str, folders: Sequence[Path]) -> tuple[str, ...]:
    if isinstance(given, tuple):
        lines = given
    else:
        places = [Path(given)] if given else [folder / filename for folder in folders]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            looked = ", ".join(str(place) for place in places)
            raise ValueError(f"no {field} found at {looked}: give a file with one per line, or a list, as {field!r}")
        lines = tuple(line.strip() for line in found.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise ValueError(f"{field} holds no line")
    return lines
