"""What Weights & Biases wrote to this machine of a run in its offline mode, read back: it has no call that tells."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The files are LevelDB's logs: after seven bytes of their own, records in blocks, each part with a header of checksum,
# length and kind.
_START, _BLOCK, _HEADER = 7, 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = range(1, 5)


def last_step(directory: Path, run_id: str) -> int:
    """The last step of a run that is on disk, written by whatever start of it; -1 where there is none.

    Args:
        directory: in which `offline-run-*` are.
        run_id: of the run.
    """
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # whose classes are made at run time
    steps = [-1]
    for path in directory.glob(f"offline-run-*/run-{run_id}.wandb"):
        parsed = (messages.Record.FromString(record) for record in read_records(path))
        steps += [record.history.step.num for record in parsed if record.WhichOneof("record_type") == "history"]
    return max(steps)


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, up to where it ends or was cut off."""
    data, at, parts = path.read_bytes(), _START, b""
    while True:
        if (rest := _BLOCK - at % _BLOCK) < _HEADER:  # no header fits before the next block
            at += rest
        if at + _HEADER > len(data):
            return
        length, kind = struct.unpack_from("<HB", data, at + 4)
        end = at + _HEADER + length
        if not _WHOLE <= kind <= _LAST or end > len(data):
            return
        parts = data[at + _HEADER : end] if kind in (_WHOLE, _FIRST) else parts + data[at + _HEADER : end]
        at = end
        if kind in (_WHOLE, _LAST):
            yield parts
