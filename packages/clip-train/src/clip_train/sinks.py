"""Where a run's metrics go, what is read beside them, and who looks at them: made from its setup."""

from __future__ import annotations

import collections
import functools
from typing import Any

from rich.console import Console

from clip_sharding import gather_items
from clip_train.config_file import ConfigError
from clip_train.dashboards import TensorBoard, Wandb
from clip_train.first_loss import absurd_first_losses
from clip_train.gauges import Gauges, peak_flops
from clip_train.inputs import text_config
from clip_train.jsonl import Jsonl, iterate_jsonl
from clip_train.log import Sink
from clip_train.output import Output
from clip_train.processes import is_first
from clip_train.screen import Progressing, warn
from clip_train.setup import Setup
from clip_train.watch import Watch


def make_sinks(setup: Setup, output: Output, console: Console, first_step: int, resolved: dict[str, Any]) -> list[Sink]:
    """The places that the config sends metrics to; of several processes the first sends them."""
    if not is_first():
        return []
    log = setup.config.log
    # `metrics.jsonl` feeds the report: it is written whatever the config says. That of a branch begins with it.
    say = functools.partial(warn, console) if setup.config.branch is None else None
    sinks: list[Sink] = [Jsonl(output.metrics, first_step=first_step, say=say)]
    try:
        if "tensorboard" in log.to:
            sinks.append(TensorBoard(output.root / "tensorboard", first_step=first_step))
        if "wandb" in log.to:
            run = {"name": output.title, "project": log.project, "config": resolved, "first_step": first_step}
            sinks.append(Wandb(output.root, **run, earlier=iterate_jsonl(output.metrics)))
    except ImportError as error:
        raise ConfigError(
            f"log.to: {error.name} is not installed; install clip-train[tensorboard] or clip-train[wandb]"
        ) from error
    if "console" in log.to:
        line_every = setup.steps(log.every)
        sinks.append(Progressing(console, num_steps=setup.num_steps, first_step=first_step, line_every=line_every))
    return sinks


def make_gauges(setup: Setup) -> Gauges:
    """What is read of the machine beside the metrics."""
    peak = peak_flops(setup.mesh.devices.flat[0].device_kind, setup.mesh.size)
    return Gauges(
        num_devices=setup.mesh.size,
        flops_per_image=setup.model_flops() / setup.config.global_batch_size if peak else 0.0,
        peak_flops=peak,
    )


def make_watch(setup: Setup, output: Output, console: Console, first_step: int) -> Watch:
    """What looks at the metrics for what somebody should hear."""
    config = setup.config
    return Watch(
        config.guard,
        output.root / "bad_steps.jsonl",
        first_step=first_step,
        first_loss=functools.partial(
            absurd_first_losses,
            config=config.loss,
            batch_size=config.global_batch_size,
            vocab_size=text_config(setup.model).vocab_size,
            pretrained=setup.origin.load is not None and not config.model.reinitialize,
        ),
        say=functools.partial(warn, console),
        gather=functools.partial(gather_items, mesh=setup.mesh),
    )


def skipped_here(setup: Setup) -> dict[str, int]:
    """The samples that this process did not use so far, by reason."""
    return {**setup.pipeline.faults, **setup.pipeline.skipped}


def count_skipped(setup: Setup) -> dict[str, int]:
    """Those of all processes."""
    counts: collections.Counter[str] = collections.Counter()
    for reason, count in gather_items([*skipped_here(setup).items()], setup.mesh):
        counts[reason] += count
    return dict(counts)
