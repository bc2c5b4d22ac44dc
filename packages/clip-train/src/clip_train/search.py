"""`clip-train search`: the nearest samples to a sentence or a picture, exactly, and a page that shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_data import SourceConfig, decode_image
from clip_data.records import IndexedShard
from clip_models import encode_image, preprocess_images
from clip_train.config_file import ConfigError, parse_config
from clip_train.embed import Row, check_weights, read_index, read_shards
from clip_train.open_model import OpenModel, open_model
from clip_train.page import write_template
from clip_train.thumbnail import data_url

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
_THUMBNAIL = 224


@dataclasses.dataclass(frozen=True)
class Hit:
    """A sample that was found.

    Attributes:
        score: cosine similarity to the query.
        row: what stands beside its embedding.
    """

    score: float
    row: Row


def nearest(directory: Path, queries: np.ndarray, *, top: int) -> list[list[Hit]]:
    """The nearest embeddings to each query, best first: shard by shard, every one compared, nothing approximated.

    They are those of the pictures, or of the captions where these alone are embedded.

    Args:
        directory: that `embed` wrote.
        queries: float32 `[q, e]`, unit norm.
        top: how many for each.

    Raises:
        ConfigError: there are no embeddings, or of another width.
    """
    width = read_index(directory)["width"]
    if width != queries.shape[1]:
        raise ConfigError(f"the embeddings in {directory} have width {width}, the query {queries.shape[1]}")
    best: list[list[Hit]] = [[] for _ in queries]
    for embeds, rows in read_shards(directory):
        scores = queries @ np.asarray(embeds, np.float32).T
        few = np.argpartition(-scores, min(top, len(rows) - 1), axis=1)[:, :top]
        for hits, row_scores, places in zip(best, scores, few, strict=True):
            hits += [Hit(float(row_scores[place]), rows[place]) for place in places]
            hits.sort(key=lambda hit: -hit.score)
            del hits[top:]
    return best


def open_index(directory: Path) -> OpenModel:
    """The model whose embeddings a directory holds.

    Raises:
        ConfigError: there are no embeddings, or the model has other weights by now.
    """
    index = read_index(directory)
    model = open_model(index["model"])
    check_weights(index, model, directory)
    return model


def embed_query(model: OpenModel, query: str) -> np.ndarray:
    """A sentence, or the picture of a path, as a unit-norm embedding float32 `[1, e]`.

    Raises:
        ValueError: the picture cannot be decoded or is not there, or the model has no text tower.
    """
    if not Path(query).is_file():
        if Path(query).suffix.lower() in _PICTURES and " " not in query:
            raise ValueError(f"a query is a sentence or the path of a picture; there is no file {query}")
        return model.encoders.texts(model.params, model.tokenizer(), [query], batch_size=1)
    prepared = preprocess_images(model.config, [decode_image(Path(query).read_bytes())])
    inputs: Any = {"pixel_values": prepared} if isinstance(prepared, np.ndarray) else prepared
    return np.asarray(encode_image(model.config, model.params, **inputs))


def write_page(directory: Path, query: str, hits: Sequence[Hit], to: Path) -> None:
    """Write the hits as one self-contained page with thumbnails, which are read from where the pictures came from.

    Args:
        directory: that `embed` wrote.
        query: what was asked.
        hits: for it.
        to: the page.
    """
    source = parse_config(SourceConfig, read_index(directory)["source"])
    pictures = [_thumbnail(source, hit.row) for hit in hits]
    asked = data_url(decode_image(Path(query).read_bytes()), side=_THUMBNAIL) if Path(query).is_file() else None
    found = list(zip(hits, pictures, strict=True))
    write_template(to, "clip_train", "search.html", query=query, asked=asked, hits=found, directory=str(directory))


def _thumbnail(source: SourceConfig, row: Row) -> str | None:
    """A picture as a data URL; `None` where there is none, or the shard it came from is no longer there."""
    try:
        shard = IndexedShard(source, row.shard)
        if row.row >= len(shard):  # a table of captions alone holds no records with pictures
            return None
        return data_url(decode_image(shard.read(row.row).image), side=_THUMBNAIL)
    except (OSError, ValueError):
        return None
