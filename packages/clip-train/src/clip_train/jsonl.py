"""Rows of metrics as lines of JSON: written whole or not at all, each step once, readable while the run goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Jsonl:
    """A file of rows, one JSON object per step, each step once; nothing is there before the first one.

    A row is on its line as soon as it is written, and on the disk after `flush`: a step whose row was flushed before
    its checkpoint keeps it, whatever ends the process.

    Args:
        path: the file; rows after `first_step` that an earlier start left are dropped, and at 0 all are.
        first_step: updates already made.
        say: told of what is missing of the steps until then.

    Attributes:
        was_cut_off: whether the last row that was kept may lack some of what was added to it.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, first_step: int, say: Callable[[str], None] | None = None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._last: Row = {}
        self._last_at = self._end = 0
        self.was_cut_off = False
        num_kept = self._keep(first_step) if path.exists() else 0
        if say is not None and num_kept < first_step:
            say(
                f"{path} lacks the rows of {first_step - num_kept} of the {first_step} steps that were made: it has "
                "been damaged or changed. The run is not: what is missing is missing there alone."
            )

    @property
    def last(self) -> Row:
        """The newest row; empty: there is none."""
        return self._last

    def write(self, row: Row) -> None:
        """Append a row, or add it to the last one, where that is of the same step.

        Raises:
            OSError: it could not be written; what was there is as it was.
        """
        descriptor = self._open()
        if row["step"] != self._last.get("step"):
            line = to_line(row).encode()
            try:
                _write_all(descriptor, line, self._end)
            except OSError:
                os.ftruncate(descriptor, self._end)
                raise
            self._last, self._last_at, self._end = row, self._end, self._end + len(line)
            return
        before, row = to_line(self._last).encode(), {**self._last, **row}
        line = to_line(row).encode()
        # What does not change is not written: wherever this is cut off, the row that was there can be told from it.
        same = next((i for i, (a, b) in enumerate(zip(before, line, strict=False)) if a != b), len(before))
        try:
            _write_all(descriptor, line[same:], self._last_at + same)
        except OSError:
            _write_all(descriptor, before[same:], self._last_at + same)
            os.ftruncate(descriptor, self._end)
            raise
        self._last, self._end = row, self._last_at + len(line)
        os.ftruncate(descriptor, self._end)

    def flush(self) -> None:
        """Have all rows on the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        return self._descriptor

    def _keep(self, first_step: int) -> int:
        """Cut the file after the last row of the steps until `first_step`, and count those of steps that were made."""
        num_kept, at, descriptor = 0, 0, self._open()
        cut_off: tuple[int, Row] | None = None
        with self._path.open("rb") as file:
            for line in file if first_step else ():
                row = _parse(line)
                if row is None:
                    cut_off = cut_off or ((at, found) if (found := _before_addition(line)) else None)
                elif row["step"] > first_step:
                    break
                else:
                    self._last, self._last_at, self._end, cut_off = row, at, at + len(line), None
                    num_kept += row["step"] > 0
                at += len(line)
        if cut_off is not None and cut_off[1]["step"] <= first_step:
            self._last_at, self._last = cut_off
            self.was_cut_off = True
            line = to_line(self._last).encode()
            _write_all(descriptor, line, self._last_at)
            self._end = self._last_at + len(line)
            num_kept += self._last["step"] > 0
        os.ftruncate(descriptor, self._end)
        return num_kept


def to_line(row: Row) -> str:
    """A row as one line of JSON, in which what is not finite is null: JSON has no other word for it."""
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(known, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> list[Row]:
    """The rows of a file, null as NaN; lines that are none, as a crash or a damaged disk leaves them, are left out.

    No file is no rows.
    """
    return list(iterate_jsonl(path))


def iterate_jsonl(path: Path) -> Iterator[Row]:
    """As `read_jsonl`, one row at a time."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if (row := _parse(line)) is not None:
                yield {name: math.nan if value is None else value for name, value in row.items()}


def _parse(line: bytes) -> Row | None:
    """The row on a whole line; `None`: there is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _before_addition(line: bytes) -> Row | None:
    """What of a row is whole on a line that was cut off while something was added to it."""
    while b"," in line:
        line = line[: line.rindex(b",")]
        if (row := _parse(line + b"}\n")) is not None:
            return row
    return None


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    """Write at a place; a disk that is nearly full takes a part at first and says so at the rest."""
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
