"""`clip-train export`: a run's model as a directory for others to open, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from clip_models import save_pretrained
from clip_train.card import complete_card
from clip_train.config_file import ConfigError, located
from clip_train.jax_export import write_programs
from clip_train.weights import RunModel, Weights, read_run

ExportFormat = Literal["clip-jax", "huggingface", "open_clip", "jax"]


def export_run(
    directory: str | Path,
    to: Path,
    format: ExportFormat = "clip-jax",
    *,
    weights: Weights | None = None,
    repo: str | None = None,
) -> RunModel:
    """Write a run's model, as of its newest checkpoint, as a directory.

    Args:
        directory: the run's `output_dir`.
        to: a new or empty directory.
        format: `clip-jax`, our own, holds any architecture; `huggingface` and `open_clip` are opened by PyTorch's
            libraries; `jax` is `clip-jax` with programs beside it that need jax and NumPy alone. All come with the
            tokenizer's files; of a tokenizer on the Hub that is not in its cache, the first and the last have the name.
        weights: moving averages or not; by default what the run's evaluations take.
        repo: on the Hugging Face Hub, by which the card calls it; by default the directory.

    Returns:
        What was written.

    Raises:
        ConfigError: there is no run, the place is taken, the run kept no moving averages, or the format cannot express
            the architecture.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is there already and not empty; give a new directory")
    with located(str(directory)):
        model = read_run(directory, weights=weights)
    with located("--to"):
        save_pretrained(to, model.config, model.params, format="clip-jax" if format == "jax" else format)
        if format == "jax":
            write_programs(to, model.config, model.params)
    complete_card(to, format, model, directory, repo=repo)
    return model
