"""`report.html`: one self-contained page of a run or of several, drawn from the files that each of them wrote."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_data.buckets import REMOTE, read_object
from clip_train.config_changes import differences
from clip_train.config_file import ConfigError, located
from clip_train.curves import Curve, read_curves
from clip_train.evaluate import Example, Result
from clip_train.jsonl import iterate_jsonl
from clip_train.output import write_json
from clip_train.page import confusion_table, write_template
from clip_train.thumbnail import data_url

SHOWN = "report.json"
_CONFIG, _ENVIRONMENT, _METRICS = "config.json", "environment.json", "metrics.jsonl"
_MOST_RUNS = 8  # as many as there are colours
_LARGEST_WHOLE, _THUMBNAIL = 64, 192

_GROUPS: dict[str, Callable[[str], bool]] = {
    "Loss": lambda name: name.endswith("loss"),
    "Accuracy in the batch": lambda name: name.endswith("_accuracy"),
    "Learning rate and logits": lambda name: name in ("learning_rate", "logit_scale", "logit_bias"),
    "Norms": lambda name: name.partition("/")[0] in ("grad_norm", "update_norm", "param_norm"),
    "Speed": lambda name: (
        name.startswith("images_per_second") or name in ("mfu", "data_fraction", "seconds", "data_seconds")
    ),
    "Memory": lambda name: name.startswith("memory/"),
    "Skipped samples": lambda name: name.startswith("skipped/"),
    "Other": lambda _: True,
}
_SPELT_OUT = {
    "data_fraction": "share of the time spent waiting for data",
    "mfu": "MFU: the model's FLOPs as a share of the chips' peak",
    "images_per_second": "images a second",
    "images_per_second_per_device": "images a second and device",
    "seconds": "seconds a step",
    "data_seconds": "seconds of a step until its batch came",
    "memory/host": "bytes of this process on the host",
    "memory/device": "bytes of the fullest device",
    "memory/device_peak": "most bytes so far of the fullest device",
}
_HEADLINES = ("acc1", "recall@1", "mean_average_precision", "lp_acc1")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run's directory tells of it.

    Attributes:
        name: of the run.
        config: the resolved config.
        environment: versions and devices.
        curves: every metric.
        facts: `(name, value)` lines about it.
        results: the final evaluations, as `result_to_show` gives them; none before it is finished.
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    facts: list[tuple[str, str]]
    results: list[dict[str, Any]]


def write_shown(path: Path, facts: Sequence[tuple[str, str]], results: Sequence[Result]) -> None:
    """Keep for the page what a run's other files do not hold: its first screen, pictures, confusions."""
    write_json(path, {"facts": list(facts), "results": [result_to_show(result) for result in results]})


def result_to_show(result: Result) -> dict[str, Any]:
    """An evaluation's result as JSON for the page."""
    confusion = None
    if result.confusion is not None:
        confusion = confusion_table(result.classnames, result.confusion.tolist())
    return {
        "name": result.name,
        "task": result.task,
        "num_samples": result.num_samples,
        "metrics": result.metrics,
        "confusion": confusion,
        "examples": [_example(example) for example in result.examples],
    }


def read_run(directory: Path, name: str | None = None) -> RunRecord:
    """Read a run, finished or under way.

    Args:
        directory: the run's.
        name: of the run; by default the directory's.

    Raises:
        ConfigError: it holds no run.
    """
    if not (directory / _CONFIG).is_file():
        raise ConfigError(f"{directory} holds no run: there is no {_CONFIG}; give the output_dir of a run")
    shown = json.loads((directory / SHOWN).read_text()) if (directory / SHOWN).exists() else {}
    return RunRecord(
        name=name or directory.absolute().name,
        config=json.loads((directory / _CONFIG).read_text()),
        environment=json.loads((directory / _ENVIRONMENT).read_text()),
        curves=read_curves(iterate_jsonl(directory / _METRICS)),
        facts=[(fact, value) for fact, value in shown.get("facts", [])],
        results=shown.get("results", []),
    )


def report(runs: Sequence[str], to: Path | None) -> Path:
    """Write the page of some runs.

    Args:
        runs: their directories, also in buckets.
        to: the page; by default a single run's own `report.html`, else `report.html` in the working directory.

    Returns:
        Where it is.

    Raises:
        ConfigError: one of them is no run, or they are more than the page has colours.
    """
    if len(runs) > _MOST_RUNS:
        raise ConfigError(f"a report is of at most {_MOST_RUNS} runs; got {len(runs)}")
    if to is None:
        alone = len(runs) == 1 and not runs[0].startswith(REMOTE)
        to = Path(runs[0]) / "report.html" if alone else Path("report.html")
    with tempfile.TemporaryDirectory() as room:
        records = [
            read_run(_fetched(run, Path(room) / str(i)), name)
            for i, (run, name) in enumerate(zip(runs, _names(runs), strict=True))
        ]
    write_report(to, records)
    return to


def write_report(path: Path, runs: Sequence[RunRecord]) -> None:
    """Write the page.

    Args:
        path: where.
        runs: of one it shows everything, of several also what differs.
    """
    curves = {name for run in runs for name in run.curves} - {"hours"}
    evaluations = [e["name"] for run in runs for e in run.config.get("evaluation", [])]
    over_time, rest = [], []
    for name in sorted(curves, key=_order):
        if not any(name.startswith(f"{evaluation}/") for evaluation in evaluations):
            rest.append(name)
        elif any(name in run.curves and run.curves[name].num_points > 1 for run in runs):
            over_time.append(name)
    write_template(
        path,
        "clip_train",
        "report.html",
        title=f"clip-train: {', '.join(run.name for run in runs)}",
        runs=runs,
        scores=_scores(runs),
        groups=_groups(over_time, rest),
        curves=[
            {
                "name": run.name,
                "batch": run.config.get("global_batch_size", 1),
                "curves": {name: curve.to_json() for name, curve in run.curves.items()},
            }
            for run in runs
        ],
        differences=_differing([run.config for run in runs]),
        surroundings=_differing([run.environment for run in runs]),
        configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
        environments=[json.dumps(run.environment, indent=2) for run in runs],
    )


def _groups(over_time: list[str], rest: list[str]) -> list[dict[str, Any]]:
    groups = []
    if over_time:
        shown = [name for name in over_time if name.endswith(_HEADLINES)] or over_time
        more = [name for name in over_time if name not in shown]
        groups.append({**_group("Evaluation over time", shown, more), "measured": True})
    left = list(rest)
    for title, belongs in _GROUPS.items():
        names = [name for name in left if belongs(name)]
        left = [name for name in left if name not in names]
        if names:
            parts = [name for name in names if title == "Norms" and "/" in name]
            groups.append(_group(title, [name for name in names if name not in parts], parts))
    return groups


def _group(title: str, shown: list[str], more: list[str]) -> dict[str, Any]:
    def charts(names: list[str]) -> list[dict[str, str]]:
        return [{"name": name, "title": _SPELT_OUT.get(name, name.replace("_", " "))} for name in names]

    return {"title": title, "charts": charts(shown), "more": charts(more), "measured": False}


def _order(name: str) -> tuple[int, str]:
    first = ("loss", "image_to_text_accuracy", "learning_rate", "images_per_second", "mfu", "grad_norm", "update_norm")
    return (first.index(name) if name in first else len(first), name)


def _scores(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Each evaluation's metrics, with the runs' newest values."""
    names = {e["name"]: None for run in runs for e in run.config.get("evaluation", [])}
    rows = []
    for evaluation in names:
        metrics = {name: None for run in runs for name in run.curves if name.startswith(f"{evaluation}/")}
        rows += [
            (metric, [f"{run.curves[metric].last:.4f}" if metric in run.curves else "" for run in runs])
            for metric in metrics
        ]
    return rows


def _differing(trees: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The fields in which some of the trees differ from the first, with the value of each."""
    first, *others = trees
    changes = [{path: (old, new) for path, old, new in differences(first, other, harmless=())} for other in others]
    rows = []
    for path in sorted({path for change in changes for path in change}):
        [here, *_] = [change[path][0] for change in changes if path in change]
        rows.append((path, [here, *(change[path][1] if path in change else here for change in changes)]))
    return rows


def _example(example: Example) -> dict[str, Any]:
    side = None if max(example.image.shape[:2]) <= _LARGEST_WHOLE else _THUMBNAIL
    return {
        "source": data_url(example.image, side=side),
        "caption": example.caption,
        "matches": [
            {"text": text, "score": round(float(score), 2), "right": bool(right)}
            for text, score, right in example.matches
        ],
    }


def _fetched(run: str, room: Path) -> Path:
    """A run's directory here; of one in a bucket, what a page needs of it."""
    if not run.startswith(REMOTE):
        return Path(run)
    room.mkdir()
    with located(run):
        for name in (_CONFIG, _ENVIRONMENT, _METRICS, SHOWN):
            with contextlib.suppress(FileNotFoundError):  # a run under way has not all of them
                (room / name).write_bytes(read_object(f"{run.rstrip('/')}/{name}"))
    return room


def _names(runs: Sequence[str]) -> list[str]:
    """The directories' own names, or as much of their paths as tells them apart."""
    paths = [run if run.startswith(REMOTE) else str(Path(run).resolve()) for run in runs]
    parts = [path.rstrip("/").split("/") for path in paths]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"a report is of different runs; got {', '.join(runs)}")
