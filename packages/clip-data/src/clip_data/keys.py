"""Keys that come again within a shard, whatever its format: the samples are kept, and counted."""

from __future__ import annotations

from clip_data.faults import Fault

__all__ = ["KeyLog"]

_NUM_REMEMBERED = 1 << 17  # samples, at least; twice as many at most, in some 30 MB


class KeyLog:
    """Remembers which rows of which shards had which keys, of the latest hundred thousand samples.

    The samples of a shard come within a block of shards, so that this reaches far enough.

    >>> log = KeyLog()
    >>> log.add("a", "0.tar", 3)  # the same row may come again, in another epoch
    >>> log.add("a", "0.tar", 3)
    >>> print(log.add("a", "0.tar", 5))
    0.tar row 5, key a: duplicate_key: row 3 has the same key; both are kept
    """

    def __init__(self):
        self._rows: dict[int, int] = {}
        self._rows_before: dict[int, int] = {}

    def add(self, key: str, shard: str, row: int) -> Fault | None:
        """Remembers a sample.

        Args:
            key: Of the sample; ``""`` is none.
            shard: Path of its shard.
            row: Its number in the shard.

        Returns:
            The fault that another row of the shard had its key, or None.
        """
        if not key:
            return None
        name = hash((shard, key))
        first = self._rows.get(name)
        if first is None:
            first = self._rows[name] = self._rows_before.get(name, row)
            if len(self._rows) == _NUM_REMEMBERED:
                self._rows_before, self._rows = self._rows, {}
        if first == row:
            return None
        detail = f"row {first} has the same key; both are kept"
        return Fault(shard=shard, row=row, key=key, reason="duplicate_key", detail=detail, lost=False)
