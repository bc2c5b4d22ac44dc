"""A run in words and numbers: the first screen's lines, and the results as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec
from rich.console import Console

from clip_models import ClipConfig, num_params
from clip_sharding import BATCH_AXES, bytes_per_device, placements
from clip_train.evaluate import Result
from clip_train.screen import count, percent, show_table
from clip_train.setup import Setup


def describe(setup: Setup) -> list[tuple[str, str]]:
    """The first screen: what is about to happen."""
    config, model, data = setup.config, setup.model, setup.pipeline
    expects = model.preprocess
    num_devices = setup.mesh.size
    batch_devices = setup.mesh.shape[BATCH_AXES[0]] * setup.mesh.shape[BATCH_AXES[1]]
    per_device = config.global_batch_size // setup.num_microbatches // batch_devices
    samples = setup.num_steps * config.global_batch_size
    rate = config.optimizer.learning_rate
    checkpoint = [f"every {config.checkpoint.every_minutes:g} minutes"] if config.checkpoint.every_minutes else []
    checkpoint += [f"every {config.checkpoint.every_steps} steps"] if config.checkpoint.every_steps else []
    axes = ", ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    return [
        ("model", _towers(model)),
        ("start", setup.origin.text),
        ("parameters", count(num_params(model))),
        ("loss", _loss(setup)),
        (
            "data",
            f"{data.num_samples:,} pairs in {_count(len(data.shards), 'shard')}"
            + (f" of {len(config.data.train)} sources" if len(config.data.train) > 1 else ""),
        ),
        (
            "prepared as",
            f"{expects.size} px {expects.resize_mode}, {expects.interpolation}; "
            f"{expects.text_length} tokens by {expects.tokenizer}"
            + (f"; {', '.join(map(str, setup.lengths))} patches by turns" if len(setup.lengths) > 1 else ""),
        ),
        (
            "devices",
            f"{num_devices} × {jax.devices()[0].device_kind}, mesh {axes}; parameters {setup.strategy}, "
            f"{config.precision}",
        ),
        (
            "batch",
            f"{config.global_batch_size:,} = {_count(batch_devices, 'device')} × {per_device:,} per device × "
            f"{_count(setup.num_microbatches, 'microbatch', 'microbatches')}",
        ),
        ("steps", f"{setup.num_steps:,} ({samples:,} pairs, {samples / data.num_samples:.3g} epochs)"),
        (
            "optimizer",
            f"{config.optimizer.kind}, learning rate {rate:g}, {setup.warmup_steps} steps of warm-up, "
            f"then {config.schedule.decay}",
        ),
        ("evaluation", ", ".join(f"{e.name} ({e.task})" for e in config.evaluation) or "none"),
        ("checkpoints", ", ".join([*checkpoint, "at the end"]) + f"; {config.checkpoint.keep} are kept"),
        ("output", config.output_dir),
    ]


def show_placements(console: Console, setup: Setup) -> None:
    """Print where every parameter lies, and what the state takes of each device."""
    header = ("parameter", "shape", "divided over", "bytes per device")
    rows = [
        (row.name, " × ".join(map(str, row.shape)) or "scalar", _spec(row.spec), f"{row.bytes_per_device:,}")
        for row in placements(setup.abstract.params)
    ]
    params, opt_state = bytes_per_device(setup.abstract.params), bytes_per_device(setup.abstract.opt_state)
    show_table(
        console,
        header,
        [*rows, ("all parameters", "", "", f"{params:,}"), ("optimizer's state", "", "", f"{opt_state:,}")],
    )


def result_to_json(result: Result, setup: Setup) -> dict[str, Any]:
    """A result in CLIP_benchmark's form."""
    model = setup.config.model
    return result.to_json(model=model.preset or model.pretrained or "custom", pretrained=setup.config.output_dir)


def show_metrics(console: Console, results: Sequence[Result]) -> None:
    """Print a table of all results."""
    rows = [
        (
            f"{result.name}  {name}",
            f"{value:.4g}" if name.endswith("_rank") else percent(value),
            f"{result.num_samples:,}",
        )
        for result in results
        for name, value in result.metrics.items()
    ]
    if rows:
        show_table(console, ("result", "value", "samples"), rows)


def _towers(model: ClipConfig) -> str:
    parts, vision = [], model.vision
    if vision is not None:
        rows, columns = vision.image_shape
        size = f"{rows}" if rows == columns else f"{rows} × {columns}"
        parts.append(f"image tower {vision.num_layers} × {vision.width}, {size} px in patches of {vision.patch_size}")
    for name, part in (("text tower", model.text), ("decoder", model.decoder)):
        if part is not None:
            parts.append(f"{name} {part.num_layers} × {part.width}, {part.max_length} tokens of {part.vocab_size}")
    return "; ".join(parts)


def _loss(setup: Setup) -> str:
    loss = setup.config.loss
    parts = [(loss.contrastive_weight, loss.kind), (loss.caption_weight, "caption")]
    if loss.distillation is not None:
        columns = loss.distillation.columns
        teacher = f"{columns.image} and {columns.text} of the records" if columns else loss.distillation.teacher
        parts.append((loss.distillation.weight, f"distillation from {teacher}"))
    text = " + ".join(name if weight == 1 else f"{weight:g} × {name}" for weight, name in parts if weight)
    model = setup.model
    if setup.origin.load is not None or loss.kind == "caption":
        return text
    bias = "" if model.logit_bias_init is None else f", bias {model.logit_bias_init:.3g}"
    return f"{text}; first logit scale {math.exp(model.logit_scale_init):.3g}{bias}"


def _spec(spec: PartitionSpec) -> str:
    names = ["–" if axes is None else axes if isinstance(axes, str) else "·".join(axes) for axes in spec]
    return ", ".join(names) if any(axes is not None for axes in spec) else "whole"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
