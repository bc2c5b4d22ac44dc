"""`report.html`: one self-contained page of a run. It needs no network and follows the reader's light or dark theme."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_train.chart import line_chart
from clip_train.evaluate import Example, Result
from clip_train.log import Row
from clip_train.thumbnail import data_url

_MOST_CLASSES = 40


def write_report(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    rows: Sequence[Row],
    results: Sequence[Result],
    config: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    """Write the page.

    Args:
        path: where.
        title: of the page.
        facts: `(name, value)` lines about the run.
        rows: of `metrics.jsonl`.
        results: the final evaluations.
        config: the resolved config.
        environment: versions and devices.
    """
    import jinja2

    template = importlib.resources.files("clip_train").joinpath("templates/report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    html = page.render(
        title=title,
        facts=facts,
        charts=_charts(rows),
        results=[_result(result) for result in results],
        config=json.dumps(config, indent=2, ensure_ascii=False),
        environment=json.dumps(environment, indent=2),
    )
    path.write_text(html, encoding="utf-8")


def _charts(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    if not rows:
        return []
    wanted = [
        ("Loss", "loss", "loss", True),
        ("Throughput", "images_per_second", "images/s", False),
        ("Learning rate", "learning_rate", "learning rate", False),
        ("Gradient norm", "grad_norm", "gradient norm", True),
        ("Logit scale", "logit_scale", "scale", False),
        ("Logit bias", "logit_bias", "bias", False),
    ]
    charts = []
    for heading, name, label, log_y in wanted:
        # The first step of a run holds the compilation: it would flatten the rest of the throughput curve.
        kept = [row for row in rows if name in row and (name != "images_per_second" or row["step"] > 1)]
        if kept:
            xs, ys = [row["step"] for row in kept], [row[name] for row in kept]
            charts.append((heading, line_chart(xs, ys, x_label="step", y_label=label, log_y=log_y)))
    return charts


def _result(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "task": result.task.replace("_", " "),
        "num_samples": result.num_samples,
        "metrics": [(name, f"{value:.4f}") for name, value in result.metrics.items()],
        "confusion": _confusion(result) if result.confusion is not None else None,
        "examples": [_example(example) for example in result.examples],
    }


def _confusion(result: Result) -> dict[str, Any]:
    counts = np.asarray(result.confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num = min(len(result.classnames), _MOST_CLASSES)
    return {
        "classnames": result.classnames[:num],
        "cut": len(result.classnames) - num,
        "rows": [
            {
                "name": result.classnames[i],
                "cells": [
                    {"count": int(counts[i, j]), "share": float(share[i, j]), "right": i == j} for j in range(num)
                ],
            }
            for i in range(num)
        ],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "source": data_url(example.image),
        "caption": example.caption,
        "matches": [{"text": text, "score": f"{score:.2f}", "right": right} for text, score, right in example.matches],
    }
