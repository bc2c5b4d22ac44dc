"""The verbs `embed` and `search` as a person sees them: what is under way, and what was found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clip_train.config_file import ConfigError, located
from clip_train.data_argument import source_of
from clip_train.embed import embed, read_index
from clip_train.open_model import open_model
from clip_train.screen import make_console, show_facts, show_table
from clip_train.search import embed_query, nearest, open_index, write_page


def run_embed(model: str, data: str, to: Path, *, data_format: str | None = None, **options: Any) -> int:
    """Embed a data set, and say how far it is.

    Args:
        model: as in `open_model`.
        data: as in `source_of`.
        to: the directory.
        data_format: of the data.
        **options: of `embed`.

    Returns:
        The exit status.

    Raises:
        ConfigError: the model, the data or the directory cannot be used.
    """
    console = make_console()
    with located("--data"):
        source = source_of(data, format=data_format)
    with located("model"):
        opened = open_model(model)
    started, last = time.monotonic(), 0
    with located("--data"):
        for done in embed(opened, source, to, **options):
            seconds = time.monotonic() - started
            console.print(f"{done:,} samples, {(done - last) / seconds:,.0f} a second")
            started, last = time.monotonic(), done
    index = read_index(to)
    facts = [("model", model), ("embeddings", f"{index['num_rows']:,} of width {index['width']}"), ("in", str(to))]
    show_facts(console, "clip-train embed", facts)
    return 0


def run_search(directory: Path, query: str, *, top: int, to: Path | None) -> int:
    """Print the nearest samples, and write the page.

    Args:
        directory: that `embed` wrote.
        query: a sentence, or the path of a picture.
        top: how many.
        to: the page; by default `search.html` in the working directory.

    Returns:
        The exit status.

    Raises:
        ConfigError: there are no embeddings, or the query cannot be embedded.
    """
    if top < 1:
        raise ConfigError(f"--top is at least 1; got {top}")
    with located(str(directory)):
        model = open_index(directory)
    with located("query"):
        hits = nearest(directory, embed_query(model, query), top=top)[0]
    console = make_console()
    rows = [(hit.row.key, f"{hit.score:.3f}", hit.row.caption[:80]) for hit in hits]
    show_table(console, ("sample", "similarity", "caption"), rows)
    page = to or Path("search.html")
    write_page(directory, query, hits, page)
    console.print(f"Wrote {page}")
    return 0
