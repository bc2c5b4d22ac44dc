"""Self-contained pages: templates with one style sheet, which follows the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MOST_CLASSES = 40
_MOST_CONFUSIONS = 20


def write_template(path: Path, package: str, template: str, **values: Any) -> None:
    """Fill in a template and write the page; it needs no network.

    Args:
        path: where.
        package: whose `templates` hold it; those of `clip_train`, such as `style.css`, may be included.
        template: its name.
        **values: all that it asks for.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "clip_train")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")


def confusion_table(classnames: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A confusion matrix as `confusion.html` draws it: its first classes, and the commonest confusions of all.

    Args:
        classnames: c of them.
        counts: `[c, c]`, rows the true class.

    Example:
        >>> table = confusion_table(["cat", "dog"], [[3, 1], [0, 4]])
        >>> table["rows"][0]["cells"][1]
        {'count': 1, 'share': 0.25, 'right': False}
        >>> table["confused"]
        [{'true': 'cat', 'predicted': 'dog', 'count': 1, 'share': 0.25}]
    """
    num = min(len(classnames), _MOST_CLASSES)
    sums = [max(sum(row), 1) for row in counts]
    rows = [
        {
            "name": classnames[i],
            "cells": [
                {"count": int(counts[i][j]), "share": round(counts[i][j] / sums[i], 3), "right": i == j}
                for j in range(num)
            ],
        }
        for i in range(num)
    ]
    wrong = [(int(count), i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if count and i != j]
    wrong.sort(key=lambda found: (-found[0], found[1:]))
    confused = [
        {
            "true": classnames[i],
            "predicted": classnames[j],
            "count": count,
            "share": round(count / sums[i], 3),
        }
        for count, i, j in wrong[:_MOST_CONFUSIONS]
    ]
    return {"classnames": list(classnames[:num]), "cut": len(classnames) - num, "rows": rows, "confused": confused}
