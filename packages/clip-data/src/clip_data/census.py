"""How many records each shard holds, before any of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clip_data.config import DataConfig, SourceConfig
from clip_data.faults import Fault
from clip_data.records import IndexedShard
from clip_data.sources import expected_count
from clip_data.workers import Workers

__all__ = ["Census", "take_census"]


class Census(NamedTuple):
    """What was counted.

    Args:
        counts: For each source the number of records of each shard.
        stated: Indices of source and shard of those that were not opened: a ``_stats.json`` states their number.
        faults: What is wrong with those that were.
    """

    counts: list[list[int]]
    stated: frozenset[tuple[int, int]] = frozenset()
    faults: tuple[Fault, ...] = ()


def take_census(config: DataConfig, paths: Sequence[Sequence[str]], workers: Workers) -> Census:
    """Counts the records of every shard.

    Args:
        config: Of the pipeline.
        paths: For each source its shards.
        workers: That open them.

    Raises:
        OSError: A shard cannot be read.
        ValueError: A source holds no record; the message says what is wrong with its first shard.
    """

    def count(item: tuple[SourceConfig, str]) -> tuple[int, bool, Fault | None]:
        source, path = item
        expected = expected_count(path, "count" if source.format == "parquet" else "successes")
        if expected is not None:
            return expected, True, None
        shard = IndexedShard(source, path, images=config.has_images)
        return len(shard), False, shard.fault

    counts: list[list[int]] = []
    stated: set[tuple[int, int]] = set()
    faults: list[Fault] = []
    for number, (source, names) in enumerate(zip(config.sources, paths, strict=True)):
        results = workers.map(count, [(source, name) for name in names])
        found = [fault for _, _, fault in results if fault]
        counts.append([size for size, _, _ in results])
        stated.update((number, shard) for shard, (_, is_stated, _) in enumerate(results) if is_stated)
        if not any(counts[-1]):
            reason = f": {found[0]}" if found else ""
            raise ValueError(f"no record in {source.shards} as format {source.format!r}{reason}")
        faults += found
    return Census(counts, frozenset(stated), tuple(faults))
