"""`clip-finetune classify` and `text`: a classifier on one of a checkpoint's towers, from config to results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clip_finetune.backbone import Tower
from clip_finetune.config import FinetuneConfig
from clip_finetune.files import claimed
from clip_finetune.judge import Verdict, judge, verdict_metrics
from clip_finetune.learn import Found, add_faults, learn
from clip_finetune.page import write_page
from clip_finetune.task import FAULTS, Task, prepare
from clip_finetune.tune import Epoch, StoppedError, forget_checkpoints
from clip_train.config_file import config_to_json, located
from clip_train.metrics import confusion_matrix
from clip_train.output import write_json
from clip_train.screen import make_console, percent, show_facts

_NUM_MISTAKES = 24
_TASKS = {"probe": "linear_probe", "zero-shot": "zeroshot_classification"}


def classify(config: FinetuneConfig, *, tower: Tower = "vision") -> int:
    """Learn the classes as the config's mode says, report on the test samples, and save the classifier.

    Started again it continues where an earlier start was cut off.

    Args:
        config: of the task.
        tower: that classifies: pictures or texts.

    Returns:
        The exit status: 0 when it is finished, 128 plus the signal's number when one stopped it.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    resolved = config_to_json(config)
    output, finished = claimed(config.output_dir, resolved, console)
    if finished:
        return 0
    task = prepare(config, tower)
    classnames = task.classifier.classnames
    facts = [
        ("model", config.model),
        ("mode", config.mode),
        ("classes", ", ".join(classnames[:12]) + (" …" if len(classnames) > 12 else "")),
        ("output", str(output.root)),
    ]
    show_facts(console, f"clip-finetune {'classify' if tower == 'vision' else 'text'}", facts)

    def tell(epoch: Epoch) -> None:
        shown = "  ".join(f"{name} {percent(value)}" for name, value in epoch.metrics.items())
        console.print(f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  validation {shown}")

    try:
        found = learn(task, output, tell)
    except StoppedError as stopped:
        console.print(f"\n{stopped}")
        return 128 + stopped.signal
    with located("test" if config.test else "train", FAULTS):
        verdict = judge(
            task.classifier, found.params, task.parts["test"], batch_size=config.batch_size, num_mistakes=_NUM_MISTAKES
        )
    output.write_config(resolved)
    opened_by = task.classifier.save(output.root / "classifier", found.params)
    results = {**_results(task, found, verdict), "transformers": opened_by}
    write_page(output.report, resolved, task.classifier, results, verdict)
    write_json(output.results, results)
    forget_checkpoints(output.root)
    prefix = "lp_" if config.mode == "probe" else ""
    lines = [(prefix + name, percent(value)) for name, value in verdict_metrics(task.classifier, verdict).items()]
    lines += [(name.replace("_", " "), f"{value:g}") for name, value in found.settings.items()]
    show_facts(console, "Finished", [*lines, ("report", str(output.report))])
    if skipped := results["skipped_samples"]:
        console.print(f"Not usable: {', '.join(f'{n} {reason}' for reason, n in skipped.items())}")
    return 0


def _results(task: Task, found: Found, verdict: Verdict) -> dict[str, Any]:
    config, classifier = task.config, task.classifier
    prefix = "lp_" if config.mode == "probe" else ""
    metrics = {f"{prefix}{name}": value for name, value in verdict_metrics(classifier, verdict).items()}
    results: dict[str, Any] = {
        "dataset": Path((config.test or config.train).patterns[0]).parent.name,
        "model": Path(config.model).name,
        "pretrained": config.model,
        "task": _TASKS.get(config.mode, f"finetune_{config.mode}"),
        "metrics": {**metrics, **found.settings},
        "language": "en",
        "num_samples": len(verdict.targets),
        "features": classifier.features or "attention",
        "classnames": list(classifier.classnames),
        "skipped_samples": add_faults(found.faults, verdict.faults),
        "unusable_samples": [*found.unusable, *verdict.unusable],
    }
    if not classifier.multi_label:
        predicted = verdict.logits.argmax(axis=1)
        results["confusion"] = confusion_matrix(predicted, verdict.targets, len(classifier.classnames)).tolist()
    if found.curve:
        results["curve"] = [{"alpha": alpha, "validation": value} for alpha, value in found.curve]
    if found.epochs:
        results["epochs"] = [dataclasses.asdict(epoch) for epoch in found.epochs]
    return results
