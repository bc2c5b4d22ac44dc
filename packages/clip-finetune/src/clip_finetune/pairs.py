"""`clip-finetune pairs`: a model learns a user's own pairs by clip-train's run, and what it forgets is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from clip_finetune.files import claimed
from clip_finetune.protect import LoraSetup, ProtectConfig, protected
from clip_finetune.wise_ft import curve_between, interpolate
from clip_models import save_pretrained
from clip_train import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_file import config_to_json, located
from clip_train.evaluate import Encoders, Result, evaluate
from clip_train.inputs import both_towers
from clip_train.jsonl import read_jsonl
from clip_train.optimizers import ParametersConfig
from clip_train.output import Output, write_json
from clip_train.run import run
from clip_train.screen import make_console, percent, show_facts, show_table
from clip_train.setup import Setup, prepare, resolve
from clip_train.weights import find_model

_LORA_LEARNING_RATE = 1e-3
_TOWERS = {"image": "vision", "text": "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig(TrainConfig):
    """Contrastive tuning on pairs: what `clip-train run` takes, and these.

    Attributes:
        lock: what stays as it is: `image` (LiT), `text`, or names of parameters as `optimizer.parameters` matches them.
        protect: how forgetting is kept small.
    """

    lock: tuple[str, ...] = ()
    protect: ProtectConfig = ProtectConfig()

    def __post_init__(self) -> None:
        """Refuse a model without weights."""
        super().__post_init__()
        if self.model.pretrained is None:
            raise ValueError(
                "model.pretrained is what is tuned: a run, a model's directory, or a name on the Hugging Face Hub; to "
                "train from random weights: clip-train run"
            )

    def training(self) -> TrainConfig:
        """The config of the run that does it, in the folder `run` of `output_dir`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        optimizer = self.optimizer
        if optimizer.learning_rate is None and self.protect.kind == "lora":
            optimizer = dataclasses.replace(optimizer, learning_rate=_LORA_LEARNING_RATE)
        locks = [ParametersConfig(match=_TOWERS.get(name, name), frozen=True) for name in self.lock]
        fields["optimizer"] = dataclasses.replace(optimizer, parameters=(*optimizer.parameters, *locks))
        # What is evaluated on the way is evaluated before the first update too.
        fields["evaluation"] = tuple(
            dataclasses.replace(evaluation, every=evaluation.every or "100%") for evaluation in self.evaluation
        )
        return TrainConfig(**{**fields, "output_dir": str(Path(self.output_dir) / "run")})


def pairs(config: PairsConfig, *, dry_run: bool = False) -> int:
    """Tune, evaluate before and after, and save the model; continue where an earlier start ended.

    Args:
        config: of the task.
        dry_run: check everything and show what would happen, then stop: nothing is written.

    Returns:
        The exit status: 0 when it is finished, 128 plus the signal's number when one stopped it.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    resolved = config_to_json(config)
    output, finished = claimed(config.output_dir, resolved, console, done=Output.is_finished)
    if finished:
        return 0
    with located("model"):
        both_towers(find_model(config.model).config)
    training = config.training()
    setups: list[Setup] = []

    def change(setup: Setup) -> Setup:
        with located("protect"):
            setups.append(protected(setup, config.protect))
        if not dry_run:
            output.write_config(resolved)
        return setups[-1]

    status = run(training, dry_run=dry_run, change=change)
    if status != 0 or dry_run:
        return status
    if not setups:  # the run was finished before, and what follows it was not
        change(prepare(*resolve(training))).pipeline.close()
    _finish(config, output, Output(Path(training.output_dir)), setups[-1], console)
    return 0


def _finish(config: PairsConfig, output: Output, trained: Output, setup: Setup, console: Console) -> None:
    """Save the tuned model and tell what it gained and lost."""
    with Checkpoints(trained.checkpoints, read_only=True) as checkpoints:
        _, params = checkpoints.restore_params(setup.abstract.params, averaged=setup.averaged)
    if isinstance(setup, LoraSetup):
        params = setup.merged(params)
    results: dict[str, Any] = {"protect": config.protect.kind}
    before = next((row for row in read_jsonl(trained.metrics) if row["step"] == 0), {})
    after = {
        f"{result['dataset']}/{name}": value
        for result in json.loads(trained.results.read_text())["evaluation"]
        for name, value in result["metrics"].items()
    }
    if config.protect.kind == "wise-ft":
        encoders = Encoders(setup.model, setup.mesh)
        start = _first(setup, params)

        def measure(params: Any) -> list[Result]:
            return [evaluate(e, encoders, params, setup.data, setup.tokenizer) for e in config.evaluation]

        curve = ()
        if config.evaluation:
            curve = curve_between(start, params, config.protect.alphas, lambda between: _headline(measure(between)))
        alpha = config.protect.alpha
        params = interpolate(start, params, alpha)
        after = {f"{result.name}/{name}": value for result in measure(params) for name, value in result.metrics.items()}
        results |= {"alpha": alpha, "curve": [{"alpha": point, "evaluation": value} for point, value in curve]}
    results |= {"before": {name: before[name] for name in after if name in before}, "after": after}
    model = output.root / "model"
    save_pretrained(model, setup.model, jax.tree.map(np.asarray, params))
    write_json(output.results, results)
    rows = [
        (name, _shown(name, results["before"][name]), _shown(name, value))
        for name, value in after.items()
        if name in results["before"]
    ]
    if rows:
        show_table(console, ("evaluation", "before", "after"), rows)
    chosen = [("alpha", f"{results['alpha']:g}")] if "alpha" in results else []
    show_facts(console, "Finished", [*chosen, ("model", str(model)), ("report", str(trained.report))])


def _first(setup: Setup, params: Any) -> Any:
    """The parameters before the first update, placed as those after the last."""
    if setup.origin.load is None:
        raise ValueError("weights to start from are what is tuned; this run began with random ones")
    return setup.origin.load(jax.tree.map(lambda leaf: leaf.sharding, params))


def _headline(results: list[Result]) -> float:
    """The mean over evaluations of what each is known by: its recalls at 1, or its first metric."""
    known_by = []
    for result in results:
        recalls = [value for name, value in result.metrics.items() if name.endswith("recall@1")]
        known_by.append(float(np.mean(recalls or list(result.metrics.values())[:1])))
    return float(np.mean(known_by))


def _shown(name: str, value: float) -> str:
    return f"{value:.4g}" if name.endswith("_rank") else percent(value)
