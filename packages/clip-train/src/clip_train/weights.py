"""Where a model and its weights come from: a preset, a written-out config, a directory, the Hub, or a run of ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from clip_models import ClipConfig, init, load_config, load_pretrained, preset, save_pretrained
from clip_models.pretrained import Format
from clip_train.checkpoint import Checkpoints
from clip_train.config import ModelConfig, TrainConfig
from clip_train.config_file import ConfigError, located, read_config
from clip_train.output import Output


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model before training.

    Attributes:
        config: its architecture and what it expects of its inputs.
        load: gives its parameters, placed by a sharding for all or a tree of one for each; `None` means random ones.
        text: where it comes from, in words.
    """

    config: ClipConfig
    load: Callable[[Any], Any] | None
    text: str


def find_model(model: ModelConfig) -> Origin:
    """The architecture that a config asks for, and where its weights are.

    Raises:
        ValueError: an unknown preset, or a directory that holds no model.
        OSError: what is named cannot be read.
    """
    if model.pretrained is not None:
        config, load = _open_pretrained(model.pretrained)
        return Origin(model.config or config, load, f"weights from {model.pretrained}")
    if model.config is not None:
        name = f"{model.preset}, " if model.preset else ""
        return Origin(model.config, None, f"{name}random initialisation")
    if model.preset is None:
        raise ValueError("give one of preset, pretrained or config")
    return Origin(preset(model.preset), None, f"{model.preset}, random initialisation")


def is_run(directory: str | Path) -> bool:
    """Whether a path is the output directory of a run."""
    output = Output(Path(directory))
    return output.config.is_file() and output.checkpoints.is_dir()


def load_run(directory: str | Path) -> tuple[ClipConfig, Any]:
    """The model of a run, with the parameters of its newest checkpoint.

    Args:
        directory: the run's `output_dir`.

    Returns:
        The model's config, and its parameters on the default device.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
    """
    output, config = _open_run(directory)
    return config, _run_params(output, config, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def export_run(directory: Path, to: Path, format: Format = "clip-jax") -> None:
    """Write a run's model, as of its newest checkpoint, as a directory that `clip_models.load_pretrained` opens.

    Args:
        directory: the run's `output_dir`.
        to: a new or empty directory.
        format: of `clip_models.save_pretrained`; `huggingface` and `open_clip` are opened by PyTorch's libraries, and
            come with the tokenizer's files where the run's tokenizer is a directory.

    Raises:
        ConfigError: there is no run, the place is taken, or the format cannot express the architecture.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is there already and not empty; give a new directory")
    with located(str(directory)):
        config, params = load_run(directory)
    with located("--to"):
        save_pretrained(to, config, params, format=format)


def _open_run(directory: str | Path) -> tuple[Output, ClipConfig]:
    output = Output(Path(directory))
    if not is_run(directory):
        raise FileNotFoundError(f"{directory} is no run: it has no config.json beside checkpoints/")
    config = read_config(TrainConfig, output.config).model.config
    if config is None:
        raise FileNotFoundError(f"{output.config} is not the resolved config of a run")
    return output, config


def _run_params(output: Output, config: ClipConfig, shardings: Any) -> Any:
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    with Checkpoints(output.checkpoints) as checkpoints:
        return checkpoints.restore_params(abstract)


def _open_pretrained(name: str) -> tuple[ClipConfig, Callable[[Any], Any]]:
    """The config at once, and the weights when it is known where they go."""
    if is_run(name):
        output, config = _open_run(name)
        return config, functools.partial(_run_params, output, config)
    return load_config(name), lambda shardings: load_pretrained(name, shardings=shardings)[1]
