"""What the person at the console sees: the screen before, the progress during, the screen after."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from clip_train.jsonl import Row
from clip_train.processes import is_first, several

Say = Callable[[str], None]


def make_console() -> Console:
    """The console of a run: off a terminal, lines are as long as they are; of several processes the first speaks."""
    return Console(highlight=False, soft_wrap=not Console().is_terminal, quiet=not is_first())


def warn(console: Console, message: str) -> None:
    """Print a warning."""
    console.print(f"[yellow]Warning:[/yellow] {escape(message)}")


def say_of_this_process(console: Console) -> Say:
    """Prints warnings of what concerns this process, whichever it is; of several each names itself."""
    if not several():
        return functools.partial(warn, console)
    who = f"process {jax.process_index()} of {jax.process_count()}, on {socket.gethostname()}"
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda message: warn(errors, f"{who}: {message}")


def show_facts(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print a title and aligned `name  value` lines; on a terminal long values wrap under themselves."""
    console.print(f"[bold]{title}[/bold]")
    width = max(len(name) for name, _ in facts)
    if console.is_terminal:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts:
            table.add_row(f"  {name}", Text(value))
        console.print(table)
    else:
        for name, value in facts:
            console.print(f"  {name:<{width}}  {value}", markup=False)
    console.print()


def show_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a small table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  " + "  ".join([cells[0].ljust(widths[0]), *padded])

    console.print(line(header), style="dim", markup=False)
    for row in rows:
        console.print(line(row), markup=False)
    console.print()


class Progressing:
    """A sink that draws a live bar on a terminal, and prints a plain line now and then elsewhere.

    Args:
        console: where.
        num_steps: of the whole run.
        first_step: made before this start.
        line_every: steps between plain lines.
    """

    def __init__(self, console: Console, *, num_steps: int, first_step: int, line_every: int) -> None:
        self._console = console
        self._num_steps = num_steps
        self._line_every = max(line_every, 1)
        self._rows_seen = 0
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.completed}[/bold]/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=console,
                expand=True,
                transient=False,
            )
            self._task = self._progress.add_task("compiling …", total=num_steps, completed=first_step)
            self._progress.start()
        else:
            console.print("compiling …")

    def write(self, row: Row) -> None:
        """Show the row, if it is a step's."""
        if "loss" not in row:
            return
        self._rows_seen += 1
        text = self._describe(row)
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], description=text)
        elif row["step"] % self._line_every == 0 or row["step"] == self._num_steps or self._rows_seen == 1:
            self._console.print(f"step {row['step']}/{self._num_steps}  {text}")

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """End the bar."""
        if self._progress is not None:
            self._progress.stop()

    def _describe(self, row: Row) -> str:
        parts = [f"loss {row['loss']:.4f}"]
        if "image_to_text_accuracy" in row:
            parts.append(f"acc {(row['image_to_text_accuracy'] + row['text_to_image_accuracy']) / 2:.0%}")
        if "learning_rate" in row:
            parts.append(f"lr {row['learning_rate']:.2e}")
        if self._rows_seen == 1:
            # The first step of a start holds the compilation: it says nothing of the speed.
            parts.append(f"compiled in {row['seconds']:.1f} s")
        else:
            rate = row["images_per_second"]
            left = (self._num_steps - row["step"]) * row["samples"] / row["step"] / rate
            parts.append(f"{rate:,.0f} img/s")
            parts += [f"MFU {row['mfu']:.0%}"] if "mfu" in row else []
            parts += [f"data {row['data_fraction']:.0%}", f"{duration(left)} left"]
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """A length of time in the two largest units: `"1 h 05 min"`, `"2 min 10 s"`, `"7 s"`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def count(number: float) -> str:
    """A count in three digits or so: `"203.2 M"`, `"12.8 k"`, `"360"`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.4g} {unit}"
    return f"{number:,.0f}"


def percent(value: Any) -> str:
    """A share as CLIP papers print it: `"95.3 %"`."""
    return f"{100 * value:.1f} %"
