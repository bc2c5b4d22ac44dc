"""`clip-train init`: a starting config for somebody's own shards, from flags and questions."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

from clip_data import SourceConfig
from clip_data.formats import FORMAT_BY_EXTENSION, FORMATS
from clip_data.records import list_source
from clip_models import presets
from clip_train.config_file import ConfigError, located
from clip_train.optimizers.schedule import check_length

_TEMPLATE = """\
{{
  // Every field there is, with its default: clip-train schema. What this run will do: clip-train run {name} --dry-run
  "output_dir": {output_dir},
  // Random weights; {{"pretrained": DIRECTORY}} starts from a checkpoint.
  "model": {{"preset": {preset}}},
  "data": {{
    "train": [{{"format": {format}, "shards": {shards}}}]
  }},
  // Pairs that the loss sees, over all devices. When memory runs out, set a smaller microbatch_size: the gradient
  // stays exact.
  "global_batch_size": {batch_size},
  // "microbatch_size": {microbatch_size},
  // Pairs, or a text such as "10 epochs".
  "train_samples": {train_samples},
  "optimizer": {{"kind": "adamw", "learning_rate": 1e-3, "beta2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0}},
  "schedule": {{"warmup": "3%", "decay": "cosine"}},
  "checkpoint": {{"every_minutes": 15, "keep": 3}},
  // Held-out pairs, at the end and every twentieth of the run:
  // "evaluation": [
  //   {{"name": "held-out", "task": "zeroshot_retrieval", "every": "5%",
  //    "data": {{"format": {format}, "shards": "…"}}}}
  // ],
  "seed": 0
}}
"""


@dataclasses.dataclass(frozen=True)
class Starter:
    """The answers that a starting config is made of.

    Attributes:
        shards: patterns, local ones absolute.
        format: of the shards.
        preset: the architecture.
        output_dir: where the run writes, absolute.
        batch_size: pairs in an update.
        train_samples: pairs, or a text such as `"30 epochs"`.
    """

    shards: str
    format: str
    preset: str
    output_dir: str
    batch_size: int
    train_samples: int | str


def ask(options: argparse.Namespace, *, interactive: bool) -> Starter:
    """Take the answers from flags, and the missing ones from the person at the terminal, if there is one.

    Args:
        options: the flags of `clip-train init`; those not given are `None`.
        interactive: whether questions can be asked.

    Raises:
        ConfigError: an answer is missing and cannot be asked for, or makes no config.
    """

    def answer(given: object, question: str, default: str) -> str:
        if given is not None:
            return str(given)
        if not interactive:
            return default
        return input(f"{question} [{default}]: ").strip() or default

    shards = options.shards
    if shards is None and interactive:
        shards = input("Your shards (path, glob, {000..123} list, gs:// or s3://): ").strip()
    if not shards:
        raise ConfigError("--shards: required: where your shards are, such as --shards 'data/*.tfrecord'")
    if "://" not in shards:
        shards = os.path.abspath(os.path.expanduser(shards))
    formats = ", ".join(FORMATS)
    form = answer(options.format, f"Format ({formats})", _guess_format(shards))
    if form not in FORMATS:
        raise ConfigError(f"--format: one of {formats}; got {form!r}")
    with located("--shards"):
        list_source(SourceConfig(format=form, shards=shards))  # pyright: ignore[reportArgumentType]
    preset = answer(options.preset, "Architecture (of clip_models.presets())", "siglip-b-16-224")
    if preset not in presets():
        raise ConfigError(f"--preset: one of {', '.join(presets())}; got {preset!r}")
    batch_size = answer(options.batch_size, "Pairs in an update", "256")
    if not batch_size.isdigit() or int(batch_size) < 1:
        raise ConfigError(f"--batch-size: a whole number of at least 1; got {batch_size!r}")
    length = answer(options.train_samples, "How long (pairs, or '10 epochs')", "10 epochs")
    with located("--train-samples"):
        check_length(int(length) if length.isdigit() else length, "train_samples")
    return Starter(
        shards=shards,
        format=form,
        preset=preset,
        output_dir=os.path.abspath(answer(options.output_dir, "Where the run writes", f"runs/{preset}")),
        batch_size=int(batch_size),
        train_samples=int(length) if length.isdigit() else length,
    )


def write_starter(starter: Starter, file: Path) -> None:
    """Write the config; local paths in it are relative to the file.

    Raises:
        ConfigError: the file is there already, or its folder is not.
    """
    if file.exists():
        raise ConfigError(f"--to: {file} is there already; give another name")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--to: there is no folder {file.absolute().parent}")

    def relative(path: str) -> str:
        return path if "://" in path else os.path.relpath(path, file.absolute().parent)

    text = _TEMPLATE.format(
        name=file.name,
        output_dir=json.dumps(relative(starter.output_dir)),
        preset=json.dumps(starter.preset),
        format=json.dumps(starter.format),
        shards=json.dumps(relative(starter.shards)),
        batch_size=starter.batch_size,
        microbatch_size=max(starter.batch_size // 4, 1),
        train_samples=json.dumps(starter.train_samples),
    )
    file.write_text(text, encoding="utf-8")


def _guess_format(shards: str) -> str:
    return "folder" if os.path.isdir(shards) else FORMAT_BY_EXTENSION.get(Path(shards).suffix, "tfrecord")
