"""A text tower that makes one vector of each sentence, and how well such vectors tell what means the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_finetune.backbone import feature_width, tower_alone, tower_features
from clip_finetune.config import FeatureKind
from clip_finetune.features import OverDevices
from clip_finetune.sentence_pairs import FeaturePairs, SentencePairs, Sentences
from clip_losses import sharded_softmax_loss
from clip_models import ClipConfig, load_pretrained, save_pretrained
from clip_sharding import BATCH_AXES
from clip_train.output import write_json
from clip_train.ranking import ranking_metrics

RECALL_AT = (1, 5, 10)
_ABOUT, _HEAD = "sentences.json", "projection.npz"


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Sentences to unit-norm vectors.

    Attributes:
        config: of the text tower alone.
        features: what of the tower a vector is made of, and the projection of, where `head` has one.
    """

    config: ClipConfig
    features: FeatureKind = "embedding"

    def head(self, dim: int | None, *, projected: bool) -> dict[str, np.ndarray]:
        """The projection before it has learned: the identity, or its first columns; nothing where there is none.

        Args:
            dim: its width; `None`: as wide as the features.
            projected: whether there is one where no width is given.

        Raises:
            ValueError: it is to be wider than the features are.
        """
        if dim is None and not projected:
            return {}
        width = feature_width(self.config, self.features)
        if dim is not None and dim > width:
            raise ValueError(f"at most the {width} numbers that features {self.features!r} have; got {dim}")
        return {"kernel": np.eye(width, dim, dtype=np.float32)}

    def embed(self, params: Any, arrays: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Unit-norm vectors float32 `[b, e]` of `input_ids` and `attention_mask`, int32 `[b, t]`.

        Args:
            params: `text` and `head`.
            arrays: of the sentences.
            key: of what training drops at random.
        """
        return project(params, tower_features(self.config, params, arrays, self.features, key))

    def vectors(self, params: Any, sentences: Sentences, *, batch_size: int) -> np.ndarray:
        """Those of all sentences, float32 `[n, e]`."""
        run = OverDevices(self.embed, params)
        with sentences.read(self.config, batch_size=run.batch_size(batch_size)) as reader:
            return np.concatenate([run(rows.arrays)[rows.mask] for rows in reader])

    def save(self, directory: Path, params: Any, *, whole: tuple[ClipConfig, Any] | None = None) -> None:
        """Write it, so that `load_embedder` opens it, and `load_pretrained` its tower.

        Args:
            directory: made if it is not there.
            params: `text` and `head`.
            whole: config and parameters of the model whose text tower this was: it is written whole, with this tower.
        """
        config, others = (self.config, {}) if whole is None else whole
        save_pretrained(directory, config, {**others, "text": params["text"]})
        heads: dict[str, Any] = {name: np.asarray(value) for name, value in params["head"].items()}
        np.savez(directory / _HEAD, **heads)
        write_json(directory / _ABOUT, {"features": self.features})


def load_embedder(directory: str | Path) -> tuple[Embedder, dict[str, Any]] | None:
    """Open what `Embedder.save` wrote, there or in `model` there; `None` where there is none."""
    for found in (Path(directory), Path(directory) / "model"):
        if (found / _ABOUT).is_file():
            about = json.loads((found / _ABOUT).read_text(encoding="utf-8"))
            config, params = load_pretrained(found)
            with np.load(found / _HEAD) as arrays:
                head = {name: arrays[name] for name in arrays.files}
            embedder = Embedder(tower_alone(config, "text"), about["features"])
            return embedder, {"text": params["text"], "head": head}
    return None


def project(params: Any, features: jax.Array) -> jax.Array:
    """Features float32 `[b, f]` to unit-norm vectors `[b, e]`, by the `kernel` of `head` if there is one."""
    if "kernel" in params["head"]:
        features = features @ params["head"]["kernel"]
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def sentence_metrics(vectors: np.ndarray, pairs: SentencePairs) -> dict[str, float]:
    """How well vectors tell what belongs together.

    Args:
        vectors: float32 `[n, e]`, of `pairs.sentences()`.
        pairs: with scores: `spearman` and `pearson` of cosine and score, equal ones by their mean rank, as the STS
            benchmarks report. Without: each pair's first sentence looks for its second among all second ones:
            `recall@1`, `@5`, `@10`, `mean_rank` and `median_rank`; an equal first sentence's other is right too.
    """
    _, first, second = pairs.sentences()
    if pairs.pairs[0].score is not None:
        from scipy import stats

        cosine = (vectors[first] * vectors[second]).sum(axis=1)
        scores = np.array([pair.score for pair in pairs.pairs], np.float64)
        correlations = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}
        return {name: float(np.asarray(of(cosine, scores))[0]) for name, of in correlations.items()}
    items, position = np.unique(second, return_inverse=True)
    right: dict[int, list[int]] = {}
    for query, item in zip(first.tolist(), position.tolist(), strict=True):
        right.setdefault(query, []).append(item)

    def positives(rows: slice) -> np.ndarray:
        found = np.zeros((len(first[rows]), len(items)), bool)
        for row, query in enumerate(first[rows].tolist()):
            found[row, right[query]] = True
        return found

    return ranking_metrics(vectors[first], vectors[items], positives, RECALL_AT)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Learns that the two sentences of a pair are nearer to each other than to any other of the batch.

    Attributes:
        embedder: that does.
        scale: the cosines are multiplied by it.
        validation: what it is judged on.
        batch_size: sentences judged at once.

    References:
        van den Oord et al., arXiv 1807.03748; both directions as Radford et al., arXiv 2103.00020.
    """

    embedder: Embedder
    scale: float
    validation: SentencePairs | FeaturePairs
    batch_size: int

    @property
    def config(self) -> ClipConfig:
        """Of the tower alone."""
        return self.embedder.config

    def loss(
        self, params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The softmax loss over the pairs of the whole batch; equal sentences are no wrong answers."""
        first, second = jax.random.split(key)
        if "features" in batch:
            ours, theirs = project(params, batch["features"]), project(params, batch["positive_features"])
        else:
            ours = self.embedder.embed(params, _side(batch, ""), first)
            theirs = self.embedder.embed(params, _side(batch, "positive_"), second)
        loss = sharded_softmax_loss(
            ours,
            theirs,
            jnp.float32(self.scale),
            mesh=mesh,
            axis_name=BATCH_AXES,
            image_ids=batch["text_id"],
            text_ids=batch["positive_id"],
        )
        return loss, {}

    def measure(self, params: dict[str, Any]) -> dict[str, float]:
        """Recalls and ranks."""
        if isinstance(self.validation, FeaturePairs):
            vectors = np.asarray(project(params, jnp.asarray(self.validation.features)))
            return sentence_metrics(vectors, self.validation.pairs)
        return measured(self.embedder, params, self.validation, batch_size=self.batch_size)

    def choice(self, metrics: dict[str, float]) -> float:
        """The recall at 1; among equal ones the mean rank."""
        return metrics["recall@1"] - 1e-9 * metrics["mean_rank"]

    def save(self, directory: Path, params: dict[str, Any]) -> None:
        """Write tower and projection."""
        self.embedder.save(directory, params)

    def load(self, directory: Path) -> dict[str, Any]:
        """What `save` wrote."""
        if (found := load_embedder(directory)) is None:
            raise FileNotFoundError(f"{directory} holds no model that embeds sentences")
        return found[1]


def measured(embedder: Embedder, params: Any, pairs: SentencePairs, *, batch_size: int) -> dict[str, float]:
    """The metrics of an embedder on pairs."""
    sentences = Sentences(tuple(pairs.sentences()[0]), pairs.where)
    return sentence_metrics(embedder.vectors(params, sentences, batch_size=batch_size), pairs)


def _side(batch: dict[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    return {name: batch[prefix + name] for name in ("input_ids", "attention_mask")}
