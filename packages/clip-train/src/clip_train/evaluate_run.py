"""`clip-train eval`: a run's newest checkpoint, measured again."""

from __future__ import annotations

from pathlib import Path

from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, located
from clip_train.evaluate import Encoders, evaluate
from clip_train.output import Output
from clip_train.processes import is_first, together
from clip_train.result_files import check_place, write_results
from clip_train.screen import make_console, show_facts
from clip_train.setup import prepare, resolve
from clip_train.summary import result_to_json, show_metrics


def evaluate_run(config: TrainConfig, *, to: Path | None = None) -> int:
    """Evaluate the newest checkpoint of a run as its config says.

    Args:
        config: of the run; its evaluations may differ from the ones the run was started with.
        to: where the results are written as well, in CLIP_benchmark's form: see `write_results`.

    Returns:
        The exit status.

    Raises:
        ConfigError: there is no run, or nothing to evaluate.
    """
    console = make_console()
    with together():
        config, origin = resolve(config)
        if not config.evaluation:
            raise ConfigError("evaluation: the config lists none; add one")
        check_place(to, len(config.evaluation))
        with located("output_dir"), Output(config.output_dir) as output:
            has_checkpoints = output.has_checkpoints()
        if not has_checkpoints:
            raise ConfigError(f"output_dir: {output.address} holds no checkpoint; train first: clip-train run CONFIG")
        setup = prepare(config, origin)
    setup.pipeline.close()
    with located("output_dir"), Checkpoints(output.checkpoints, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(setup.abstract.params, averaged=setup.averaged)
    show_facts(console, "clip-train eval", [("run", output.address), ("step", f"{step} of {setup.num_steps}")])
    encoders = Encoders(setup.model, setup.mesh)
    results = []
    for i, evaluation in enumerate(config.evaluation):
        with located(f"evaluation.{i}"):
            results.append(evaluate(evaluation, encoders, params, setup.data, setup.tokenizer))
    show_metrics(console, results)
    if to is not None and is_first():
        write_results(to, [result_to_json(result, setup) for result in results])
    return 0
