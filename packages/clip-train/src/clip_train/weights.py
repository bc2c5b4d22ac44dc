"""Where a model and its weights come from: a preset, a written-out config, a directory, the Hub, or a run of ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding, PartitionSpec

from clip_models import (
    ClipConfig,
    init,
    load_config,
    load_pretrained,
    logical_axes,
    preset,
    surgery,
)
from clip_train.checkpoint import Checkpoints
from clip_train.config import ModelConfig, TrainConfig
from clip_train.config_file import read_config
from clip_train.optimizers import ParameterOptions
from clip_train.output import Output

Load = Callable[[Any], Any]
Weights = Literal["ema", "raw"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model before training.

    Attributes:
        config: its architecture and what it expects of its inputs.
        load: gives its parameters, placed by a sharding for all or a tree of one for each; `None` means random ones.
        text: where it comes from, in words.
        pretrained: what the weights were made for; `None` means random ones.
    """

    config: ClipConfig
    load: Load | None
    text: str
    pretrained: ClipConfig | None = None


def find_model(model: ModelConfig) -> Origin:
    """The architecture that a config asks for, and where its weights are.

    Raises:
        ValueError: an unknown preset, or a directory that holds no model.
        OSError: what is named cannot be read.
    """
    if model.pretrained is not None:
        config, load = open_weights(model.pretrained)
        text = f"weights from {model.pretrained}"
        if model.image_tower is not None:
            config, load = _with_image_tower(config, load, model.image_tower)
            text += f", image tower from {model.image_tower}"
        if model.reinitialize:
            text += f"; {', '.join(model.reinitialize)} random"
        return Origin(model.config or config, load, text, pretrained=config)
    if model.config is not None:
        name = f"{model.preset}, " if model.preset else ""
        return Origin(model.config, None, f"{name}random initialisation")
    if model.preset is None:
        raise ValueError("give one of preset, pretrained or config")
    return Origin(preset(model.preset), None, f"{model.preset}, random initialisation")


def adapt(origin: Origin, *, reinitialize: Sequence[str], seed: int) -> Origin:
    """The same origin, whose `load` gives parameters of `origin.config`, whatever the weights were made for.

    Positions are resampled to other image sizes and text lengths, another projection is drawn anew, as are scale and
    bias where the loss is another; what `reinitialize` names is drawn too. Anything else that differs is refused.

    Args:
        origin: of pretrained weights, its `config` the model to train.
        reinitialize: parts of the model, as `clip_models.surgery.redraw` names them.
        seed: of what is drawn.

    Raises:
        ValueError: naming every array that does not fit.
    """
    theirs, ours, load = origin.pretrained, origin.config, origin.load
    if theirs is None or load is None:
        return origin

    def fit(params: Any) -> Any:
        config = dataclasses.replace(theirs, compute=ours.compute)
        if config.vision and ours.vision and config.vision.image_size != ours.vision.image_size:
            config, params = surgery.resize_images(config, params, ours.vision.image_size)
        for before, after in ((config.text, ours.text), (config.decoder, ours.decoder)):
            if before and after and before.max_length != after.max_length:
                config, params = surgery.resize_texts(config, params, after.max_length)
        fresh = list(reinitialize)
        if config.projection_dim != ours.projection_dim:
            fresh += [f"{name}/projection" for name in ("vision", "text") if getattr(ours, name)]
        if (config.logit_bias_init is None) != (ours.logit_bias_init is None) and ours.has_logits:
            fresh += ["logit_scale"] if ours.logit_bias_init is None else ["logit_scale", "logit_bias"]
        return surgery.redraw(ours, params, fresh, jax.random.key(seed))[1]

    shapes = jax.eval_shape(functools.partial(init, theirs), jax.random.key(0))
    fitted = jax.eval_shape(fit, shapes)  # what does not fit is known before anything is read
    if jax.tree.structure(shapes) == jax.tree.structure(fitted) and not reinitialize:
        same = all(a.shape == b.shape for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(fitted), strict=True))
        if same:
            return origin
    return dataclasses.replace(origin, load=lambda shardings: fit(load(_whole(shardings))))


def _whole(shardings: Any) -> Any:
    """Every array on every device: arrays that are to be changed need not divide as the changed ones do."""
    one = jax.tree.leaves(shardings)[0]
    return NamedSharding(one.mesh, PartitionSpec()) if isinstance(one, NamedSharding) else one


def _with_image_tower(config: ClipConfig, load: Load, name: str) -> tuple[ClipConfig, Load]:
    """A model with another's image tower: its config at once, and the weights later."""
    other, load_other = open_weights(name)

    def joined(params: Any, other_params: Any) -> tuple[ClipConfig, Any]:
        return surgery.replace_vision(config, params, (other, other_params), jax.random.key(0))

    known: list[ClipConfig] = []

    def trace(*both: Any) -> Any:
        result, params = joined(*both)
        known.append(result)
        return params

    jax.eval_shape(trace, *(jax.eval_shape(functools.partial(init, c), jax.random.key(0)) for c in (config, other)))
    return known[0], lambda shardings: joined(load(_whole(shardings)), load_other(_whole(shardings)))[1]


def is_run(directory: str | Path) -> bool:
    """Whether a path is the output directory of a run."""
    with Output(directory) as output:
        return _is_run(output)


def _is_run(output: Output) -> bool:
    return output.config.is_file() and output.has_checkpoints()


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A run's model as of its newest checkpoint.

    Attributes:
        config: of the model.
        params: its parameters.
        step: of the checkpoint.
        weights: which they are: moving averages, or those that training went on from.
        evaluated: which the run's evaluations take.
        run: the resolved config of the run.
    """

    config: ClipConfig
    params: Any
    step: int
    weights: Weights
    evaluated: Weights
    run: TrainConfig


def load_run(directory: str | Path) -> tuple[ClipConfig, Any]:
    """The model of a run, with the parameters of its newest checkpoint: their averages if it evaluates those.

    Args:
        directory: the run's `output_dir`.

    Returns:
        The model's config, and its parameters on the default device.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
    """
    model = read_run(directory)
    return model.config, model.params


def read_run(directory: str | Path, *, weights: Weights | None = None) -> RunModel:
    """The same with what is known of it, and the choice of its weights.

    Args:
        directory: the run's `output_dir`.
        weights: moving averages or not; by default what its evaluations take.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: the run kept no moving averages, and they are asked for.
    """
    with Output(directory) as output:
        run, config = _open_run(output)
    placed = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return _read_run(output.checkpoints, run, config, placed, weights)


def _open_run(output: Output) -> tuple[TrainConfig, ClipConfig]:
    if not _is_run(output):
        raise FileNotFoundError(f"{output.address} is no run: it has no config.json beside checkpoints/")
    run = read_config(TrainConfig, output.config)
    if run.model.config is None:
        raise FileNotFoundError(f"{output.name(output.config)} is not the resolved config of a run")
    return run, run.model.config


def _read_run(
    directory: str, run: TrainConfig, config: ClipConfig, shardings: Any, weights: Weights | None = None
) -> RunModel:
    evaluated: Weights = "ema" if run.ema is not None and run.ema.evaluate else "raw"
    taken = weights or evaluated
    if taken == "ema" and run.ema is None:
        raise ValueError("the run kept no moving averages: its config has no ema. Take the raw weights")
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    averaged = ParameterOptions(run.optimizer, logical_axes(config)).trainable(shapes) if taken == "ema" else None
    with Checkpoints(directory, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(abstract, averaged=averaged)
    return RunModel(config=config, params=params, step=step, weights=taken, evaluated=evaluated, run=run)


def open_weights(name: str) -> tuple[ClipConfig, Load]:
    """The config at once, and the weights when it is known where they go.

    Args:
        name: a run's directory, a model's directory, or a name on the Hugging Face Hub.

    Raises:
        FileNotFoundError: there is none, or the run has no checkpoint yet.
        ValueError: it is not one of ours, nor of a kind that `load_pretrained` knows.
    """
    with Output(name) as output:
        if _is_run(output):
            run, config = _open_run(output)
            return config, lambda shardings: _read_run(output.checkpoints, run, config, shardings).params
        if output.in_bucket or output.has_checkpoints():
            raise FileNotFoundError(f"{name} holds no finished checkpoint of a run")
    return load_config(name), lambda shardings: load_pretrained(name, shardings=shardings)[1]
