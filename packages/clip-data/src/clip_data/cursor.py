"""What makes a cursor: the position, and what the order of samples is a function of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from clip_data.config import DataConfig
from clip_data.filters import filters_identity
from clip_data.transform import transform_identity

__all__ = ["check_cursor", "identity"]

_VERSION = 2
_NUM_SOURCES_NAMED = 16  # of more, a cursor of less than 4 KB holds one digest


def identity(config: DataConfig, paths: Sequence[Sequence[str]], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns what the order of samples is a function of, in JSON values: a cursor is good only where all is equal.

    Args:
        config: Of the pipeline.
        paths: For each source its shards.
        counts: For each source the number of records of each shard.
    """
    sources: list[Any] = []
    for source, names, numbers in zip(config.sources, paths, counts, strict=True):
        digest = _digest([source.format, _below_common_folder(names), list(numbers)])
        sources.append([len(names), sum(numbers), digest, *([] if config.evaluates else [source.weight])])
    filters = [filters_identity(source.filters) for source in config.sources]
    if len(sources) > _NUM_SOURCES_NAMED:
        sources, filters = [len(sources), _digest(sources)], [_digest(filters)]
    return {
        "version": _VERSION,
        "seed": config.seed,
        "shuffle": config.shuffle,
        "evaluates": config.evaluates,
        "block_shards": config.block_shards,
        "num_streams": config.num_streams,
        "empty_caption": "drop" if config.drops_empty_captions else "keep",
        "strict": config.strict,
        "filters": filters,
        "transform": transform_identity(config.transform),
        "sources": sources,
        **({"embeddings": config.embeddings} if config.embeddings else {}),
        **({} if config.has_images else {"images": False}),
    }


def check_cursor(cursor: dict[str, Any], identity: dict[str, Any]) -> tuple[int, int]:
    """Returns a cursor's position and, where batches differ in size, the number of the next one; else 0.

    Args:
        cursor: From a pipeline.
        identity: Of this one.

    Raises:
        ValueError: The cursor belongs to other data or another order; the message says what differs.
    """
    here, cursor = json.loads(json.dumps(identity)), json.loads(json.dumps(cursor))
    position, number = cursor.pop("position", None), cursor.pop("batch", 0)
    differing = [
        f"{name} was {cursor.get(name)!r} and is {here.get(name)!r}"
        for name in dict.fromkeys([*here, *cursor])
        if cursor.get(name) != here.get(name)
    ]
    if not isinstance(position, int) or position < 0:
        raise ValueError(f"a cursor's position must be a count of samples, not {position!r}")
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"a cursor's batch must be a count of batches, not {number!r}")
    if differing:
        raise ValueError(f"the cursor is not of this pipeline: {'; '.join(differing)}")
    return position, number


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=6).hexdigest()


def _below_common_folder(paths: Sequence[str]) -> list[str]:
    """Cuts off the folder that all paths share: data may move to another directory or store."""
    split = [path.split("/") for path in paths]
    first, last = min(split), max(split)  # what these two share, all share
    depth = min(map(len, split)) - 1
    depth = next((level for level in range(depth) if first[level] != last[level]), depth)
    return ["/".join(parts[depth:]) for parts in split]
