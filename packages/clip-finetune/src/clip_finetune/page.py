"""`report.html` of a classifier: one self-contained page with the confusion matrix and the surest mistakes."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

from clip_finetune.classifier import Classifier
from clip_finetune.judge import Verdict
from clip_train.thumbnail import data_url

_MOST_CLASSES = 40
_THUMBNAIL = 160


def write_page(
    path: Path, config: dict[str, Any], classifier: Classifier, results: dict[str, Any], verdict: Verdict
) -> None:
    """Write the page; it needs no network and follows the reader's light or dark theme.

    Args:
        path: where.
        config: the resolved config.
        classifier: which.
        results: of `results.json`.
        verdict: on the test samples.
    """
    import jinja2

    names = classifier.classnames
    mistakes = [
        {
            "source": data_url(mistake.image, side=_THUMBNAIL),
            "key": mistake.key,
            "label": names[mistake.label],
            "predicted": names[mistake.predicted],
            "probability": f"{mistake.probability:.3f}",
        }
        for mistake in verdict.mistakes
    ]
    counts = [row[:_MOST_CLASSES] for row in results.get("confusion", [])[:_MOST_CLASSES]]
    template = importlib.resources.files("clip_finetune").joinpath("templates/report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    html = page.render(
        title=f"clip-finetune: {path.parent.name}",
        results=results,
        metrics=[(name, f"{value:.4g}") for name, value in results["metrics"].items()],
        names=names[:_MOST_CLASSES],
        cut=len(names) - _MOST_CLASSES,
        rows=[
            {"name": names[i], "cells": [(count, count / max(sum(row), 1), i == j) for j, count in enumerate(row)]}
            for i, row in enumerate(counts)
        ],
        mistakes=mistakes,
        curve=results.get("curve", []),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )
    path.write_text(html, encoding="utf-8")
