"""`clip-train eval` on any model: what a config, or a few flags, ask of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_data.buckets import REMOTE
from clip_train.config_file import (
    STRICT,
    ConfigError,
    config_to_json,
    located,
    parse_config,
    read_config,
    read_json,
    set_field,
)
from clip_train.data_argument import source_of
from clip_train.evaluate import EvaluationConfig, check_evaluation, dataset_type, evaluate
from clip_train.inputs import data_config
from clip_train.open_model import open_model
from clip_train.result_files import check_place, write_results
from clip_train.screen import make_console, show_facts
from clip_train.summary import show_metrics
from clip_train.weights import is_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A model and what it is measured on.

    Attributes:
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        evaluation: what is measured.
    """

    __pydantic_config__ = STRICT

    model: str
    evaluation: tuple[EvaluationConfig, ...]

    def __post_init__(self) -> None:
        """Refuse to measure nothing, and two things by one name."""
        if not self.evaluation:
            raise ValueError("evaluation lists at least one evaluation; got none")
        names = [evaluation.name for evaluation in self.evaluation]
        if len(set(names)) < len(names):
            raise ValueError(f"each evaluation has a name of its own; got {names}: give them in a config")


def trains(given: str) -> bool:
    """Whether what `clip-train eval` is given is a run or its config, and no model that is trained elsewhere."""
    if given.startswith(REMOTE):
        return is_run(given)
    path = Path(given).expanduser()
    if path.is_dir():
        return is_run(path) or (path / "checkpoints").is_dir()
    return path.suffix == ".json" and (not path.is_file() or not isinstance(read_json(path).get("model"), str))


def asked_of(
    given: str,
    *,
    data: Sequence[str],
    overrides: Sequence[str],
    task: str | None = None,
    data_format: str | None = None,
    **options: str | None,
) -> EvaluateConfig:
    """The evaluations that a config file, or flags beside a model, ask for.

    Args:
        given: a config file with `model` and `evaluation`, or a model as in `open_model`.
        data: as in `source_of`, each an evaluation of its own.
        overrides: of the config's fields.
        task: of those; by default what `dataset_type.txt` says, as CLIP_benchmark lays data sets out.
        data_format: of the data.
        **options: `classnames` and `templates`.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.suffix == ".json":
        return read_config(EvaluateConfig, path, overrides)
    tree: dict[str, Any] = {"model": given, "evaluation": []}
    for place in data:
        with located("--data"):
            source = source_of(place, format=data_format, split="test")
        kind = "zeroshot_retrieval" if dataset_type(source) == "retrieval" else "zeroshot_classification"
        named = {name: value for name, value in options.items() if value is not None}
        name = Path(place.rstrip("/*")).name or place
        tree["evaluation"].append({"name": name, "task": task or kind, "data": config_to_json(source), **named})
    for override in overrides:
        set_field(tree, override)
    if not tree["evaluation"]:
        raise ConfigError(
            "evaluation: nothing to measure on; give --data SHARDS, or a config with model and evaluation"
        )
    return parse_config(EvaluateConfig, tree)


def evaluate_model(config: EvaluateConfig, *, to: Path | None = None) -> int:
    """Evaluate a model that is not being trained.

    Args:
        config: which, and on what.
        to: where the results are written as well, in CLIP_benchmark's form: see `write_results`.

    Returns:
        The exit status.

    Raises:
        ConfigError: the model, or what it is measured on, cannot be used.
    """
    console = make_console()
    check_place(to, len(config.evaluation))
    with located("model"):
        model = open_model(config.model)
        tokenizer = model.tokenizer()
    data = data_config(model.config, tokenizer=None)
    for i, evaluation in enumerate(config.evaluation):
        with located(f"evaluation.{i}"):
            check_evaluation(evaluation, data, model.encoders)
    show_facts(console, "clip-train eval", [("model", config.model)])
    results = []
    for i, evaluation in enumerate(config.evaluation):
        with located(f"evaluation.{i}"):
            results.append(evaluate(evaluation, model.encoders, model.params, data, tokenizer))
    show_metrics(console, results)
    if to is not None:
        name = Path(config.model).name
        write_results(to, [result.to_json(model=name, pretrained=config.model) for result in results])
    return 0
