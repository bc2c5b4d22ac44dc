"""`report.html` of a classifier: one self-contained page with the confusion matrix and the surest mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_finetune.classifier import Classifier
from clip_finetune.judge import Verdict
from clip_train.page import confusion_table, write_template
from clip_train.thumbnail import data_url

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
    names = classifier.classnames
    mistakes = [
        {
            "source": None if isinstance(mistake.shown, str) else data_url(mistake.shown, side=_THUMBNAIL),
            "text": mistake.shown if isinstance(mistake.shown, str) else None,
            "key": mistake.key,
            "label": names[mistake.label],
            "predicted": names[mistake.predicted],
            "probability": f"{mistake.probability:.3f}",
        }
        for mistake in verdict.mistakes
    ]
    counts = results.get("confusion")
    write_template(
        path,
        "clip_finetune",
        "report.html",
        title=f"clip-finetune: {path.parent.name}",
        results=results,
        metrics=[(name, f"{value:.4g}") for name, value in results["metrics"].items()],
        confusion=confusion_table(names, counts) if counts else None,
        mistakes=mistakes,
        curve=results.get("curve", []),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )
