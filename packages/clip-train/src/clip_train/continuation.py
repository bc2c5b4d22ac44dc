"""A run that was started before: whether this is it, what has changed since, and what it was doing when it ended."""

from __future__ import annotations

from typing import Any

from clip_sharding import exchange
from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_changes import in_words, rounding_changes
from clip_train.config_file import ConfigError, config_to_json, parse_config
from clip_train.evaluate import EvaluationConfig
from clip_train.jsonl import Jsonl
from clip_train.output import Output
from clip_train.screen import Say
from clip_train.setup import Setup


def claim(output: Output, resolved: dict[str, Any]) -> bool:
    """Make sure that the run's directory is empty or this run's; another's of which nothing was saved is none.

    Returns:
        Whether it is this run's already.

    Raises:
        ConfigError: it holds something else.
    """
    return output.claim(resolved, complete=_completed, is_free=not output.has_steps())


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config, perhaps of an earlier version, with the fields that it lacks.

    Raises:
        ConfigError: this version has no such config.
    """
    return config_to_json(parse_config(TrainConfig, config))


def check_length(setup: Setup, checkpoints: Checkpoints) -> None:
    """Refuse a run that is to be shorter than it is.

    Raises:
        ConfigError: it has made more steps than the config asks for.
    """
    made = checkpoints.latest_step() or 0
    if made > setup.num_steps:
        raise ConfigError(
            f"train_samples: {setup.config.train_samples} are {setup.num_steps} steps, and this run has made {made}: "
            f"give at least {made * setup.config.global_batch_size}, or another output_dir"
        )


def tell_changes(before: dict[str, Any], resolved: dict[str, Any], setup: Setup, say: Say) -> None:
    """Say what of a config that has changed since the last start changes the run that continues."""
    if changes := rounding_changes(before, resolved):
        say(
            "this is computed in another way from here on:\n"
            f"{in_words(changes, 'before', 'now')}\n"
            "Sums are rounded otherwise, and dropout and augmentation draw other numbers."
        )
    was, now, schedule = before["train_samples"], resolved["train_samples"], setup.config.schedule
    lengths = (schedule.warmup, schedule.offset, schedule.timescale, schedule.cooldown)
    spans = schedule.decay in ("cosine", "linear", "exponential") or any("%" in str(length) for length in lengths)
    if was != now and (spans or schedule.cooldown):
        say(
            f"train_samples was {was} and is {now}: from here on the learning rate is that of a run of "
            f"{setup.num_steps} steps, over which decay, cooldown and lengths in % go."
        )


def undone(setup: Setup, first_step: int, metrics: Jsonl | None) -> list[EvaluationConfig]:
    """The evaluations that are due before the next step: at the start of the run, or where it was stopped in them.

    Args:
        setup: of the run.
        first_step: updates already made.
        metrics: in the first process, the file that says which were made.
    """
    made = {} if metrics is None or metrics.was_cut_off else metrics.last
    found: list[int] = []
    for i, evaluation in enumerate(setup.config.evaluation):
        if first_step == 0:
            # A probe is trained each time: it is measured before the run only where it is measured along it.
            is_due = evaluation.every is not None or evaluation.task != "linear_probe"
        else:
            is_due = evaluation.every is not None and first_step % setup.steps(evaluation.every) == 0
            is_due = is_due and first_step < setup.num_steps
        is_made = made.get("step") == first_step and any(name.startswith(f"{evaluation.name}/") for name in made)
        found += [i] if is_due and not is_made else []
    return [setup.config.evaluation[i] for i in exchange(found)[0]]
