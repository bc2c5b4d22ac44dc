"""What makes a cursor: the position, what was lost up to there, and what the order of samples is a function of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from clip_data.config import DataConfig, SourceConfig
from clip_data.fault_log import check_counts
from clip_data.filters import filters_identity
from clip_data.transform import transform_identity

__all__ = ["Standing", "check_cursor", "identity"]

_VERSION = 3
_NUM_SOURCES_NAMED = 16  # of more, a cursor of less than 4 KB holds one digest
_MAX_SHOWN = 100  # characters of a value that a message may show; of a longer one, a digest


class Standing(NamedTuple):
    """Where a run stands.

    Args:
        position: Samples delivered, over all processes.
        number: Batches delivered, where they differ in size, else 0.
        counts: As ``FaultLog.to_json`` gives them.
    """

    position: int
    number: int
    counts: dict[str, Any]


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
    # Which fields are read decides which records are bad.
    fields = [[source.image_key, _captions(source), source.label_key] for source in config.sources]
    if len(sources) > _NUM_SOURCES_NAMED:
        sources, filters = [len(sources), _digest(sources)], [_digest(filters)]
    return {
        "version": _VERSION,
        "seed": int(config.seed),
        "shuffle": config.shuffle,
        "evaluates": config.evaluates,
        "block_shards": config.block_shards,
        "num_streams": config.num_streams,
        "empty_caption": "drop" if config.drops_empty_captions else "keep",
        "strict": config.strict,
        "filters": filters,
        "fields": _short(fields[0] if fields.count(fields[0]) == len(fields) else fields),
        "transform": _short(transform_identity(config.transform)),
        "sources": sources,
        **({"embeddings": _short(config.embeddings)} if config.embeddings else {}),
        **({} if config.has_images else {"images": False}),
    }


def check_cursor(cursor: Any, identity: dict[str, Any]) -> Standing:
    """Returns where a cursor says that a run stands.

    Args:
        cursor: From a pipeline.
        identity: Of this one.

    Raises:
        ValueError: The cursor is none, or belongs to other data or another order; the message says what differs.
    """
    if not isinstance(cursor, dict):
        raise ValueError(f"a cursor must be a dict, as Pipeline.cursor() returns it, not {cursor!r:.100}")
    here, cursor = json.loads(json.dumps(identity)), json.loads(json.dumps(cursor))
    position, number, counts = (cursor.pop(name, default) for name, default in _STANDING)
    differing = [
        f"{name} was {cursor.get(name)!r} and is {here.get(name)!r}"
        for name in dict.fromkeys([*here, *cursor])
        if cursor.get(name) != here.get(name)
    ]
    if type(position) is not int or position < 0:
        raise ValueError(f"a cursor's position must be a count of samples, not {position!r}")
    if type(number) is not int or number < 0:
        raise ValueError(f"a cursor's batch must be a count of batches, not {number!r}")
    if differing:
        raise ValueError(f"the cursor is not of this pipeline: {'; '.join(differing)}")
    return Standing(position, number, check_counts(counts))


_STANDING = (("position", None), ("batch", 0), ("counts", None))


def _captions(source: SourceConfig) -> Any:
    keys = source.caption_key
    return list(keys.items()) if isinstance(keys, dict) else keys


def _short(value: Any) -> Any:
    return value if len(json.dumps(value)) <= _MAX_SHOWN else _digest(value)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=6).hexdigest()


def _below_common_folder(paths: Sequence[str]) -> list[str]:
    """Cuts off the folder that all paths share: data may move to another directory or store."""
    split = [path.split("/") for path in paths]
    first, last = min(split), max(split)  # what these two share, all share
    depth = min(map(len, split)) - 1
    depth = next((level for level in range(depth) if first[level] != last[level]), depth)
    return ["/".join(parts[depth:]) for parts in split]
