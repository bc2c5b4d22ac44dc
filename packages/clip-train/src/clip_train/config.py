"""The one config of a run, composed of its parts' configs."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic

from clip_data import SourceConfig
from clip_data.buckets import REMOTE
from clip_models import ClipConfig
from clip_models.config import AttentionImplementation, Interpolation, Padding, Remat, ResizeMode
from clip_sharding import MeshConfig, PartitionConfig
from clip_train.augment import AugmentConfig
from clip_train.checkpoint import CheckpointConfig
from clip_train.config_file import STRICT
from clip_train.evaluate import EvaluationConfig
from clip_train.guard import GuardConfig
from clip_train.log import LogConfig
from clip_train.objective import LossConfig
from clip_train.optimizers import AdamWConfig, Length, Optimizer, ScheduleConfig
from clip_train.optimizers.schedule import check_length
from clip_train.state import EmaConfig


def _kind_of_sharding(given: Any) -> str:
    if isinstance(given, dict | PartitionConfig):
        return "dims"
    return "rules" if isinstance(given, list | tuple) else "name"


# The kind is chosen before it is read, so that a fault is told of one kind and not of all three.
Sharding = Annotated[
    Annotated[Literal["auto", "replicated", "fsdp", "tensor", "fsdp+tensor"], pydantic.Tag("name")]
    | Annotated[PartitionConfig, pydantic.Tag("dims")]
    | Annotated[tuple[tuple[str, str | tuple[str, ...]], ...], pydantic.Tag("rules")],
    pydantic.Discriminator(_kind_of_sharding),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and where its weights come from.

    Attributes:
        preset: a named architecture, randomly initialised.
        pretrained: weights to start from: a directory, a run's directory, or a name on the Hugging Face Hub.
        config: an architecture written out, randomly initialised; beside `preset` it is that one, written out in a
            run's resolved config. Beside `pretrained` it may have another image size, text length or projection, and
            parts that `reinitialize` names. `logit_scale_init` and `logit_bias_init`, left at their defaults, become
            those that suit the loss and the batch.
        image_tower: with `pretrained`, weights from which the image tower is taken instead (LiT).
        reinitialize: with `pretrained`, parts that are drawn anew, such as `"text"`, `"vision/map_head"`, or
            `"logit_bias"`, which then suits loss and batch.
    """

    preset: str | None = None
    pretrained: str | None = None
    config: ClipConfig | None = None
    image_tower: str | None = None
    reinitialize: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse no model, and two."""
        if self.preset and self.pretrained:
            raise ValueError(f"give preset or pretrained, not both; got {self.preset!r} and {self.pretrained!r}")
        if not (self.preset or self.pretrained or self.config):
            raise ValueError("give one of preset (a named architecture), pretrained (weights) or config (written out)")
        if not self.pretrained and (self.image_tower or self.reinitialize):
            raise ValueError(
                "image_tower and reinitialize change pretrained weights: give pretrained, or leave them out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDataConfig:
    """What is trained on; how samples are prepared comes from the model, and what is set here overrides it.

    Attributes:
        train: the sources, mixed by weight.
        seed: of the order of samples; by default the run's.
        image_size: pixels on each side, or height and width; also the model's, whose positions are resampled.
        max_patches: length of the sequences of patches, with `naflex`. With several each batch has one of them, as
            SigLIP 2 was trained, and what is evaluated the model's own.
        resize_mode: how a picture gets to that size; `naflex` makes sequences of patches of it.
        interpolation: of the resize.
        mean: per channel, on the [0, 1] scale.
        std: likewise.
        tokenizer: a directory, or a name on the Hugging Face Hub.
        text_length: tokens; the model's longest text follows where this is longer.
        padding: to `max_length`, or to the `longest` of a batch.
        pad_id: token to pad with.
        lower_case: before tokenising.
        canonicalize: remove punctuation before tokenising.
        augment: how training pictures vary; by default they do not.
        num_threads: that decode; by default one per core.
        max_bad_fraction: the share of an epoch's samples that may be unusable before the run stops.
        repeat_first_batch: train on the first batch alone, again and again, to look for faults: whatever else is wrong
            with the data, a sound model learns one batch by heart.
    """

    train: tuple[SourceConfig, ...]
    seed: int | None = None
    image_size: int | tuple[int, int] | None = None
    max_patches: int | tuple[int, ...] | None = None
    resize_mode: ResizeMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    tokenizer: str | None = None
    text_length: int | None = None
    padding: Padding | None = None
    pad_id: int | None = None
    lower_case: bool | None = None
    canonicalize: bool | None = None
    augment: AugmentConfig = AugmentConfig()
    num_threads: int | None = None
    max_bad_fraction: float = 0.1
    repeat_first_batch: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty list of sources, and numbers outside their ranges."""
        if not self.train:
            raise ValueError("train lists at least one source; got none")
        for name in ("image_size", "max_patches", "text_length", "num_threads"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
                raise ValueError(f"{name} is at least 1; got {value}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is between 0 and 1; got {self.max_bad_fraction}")

    def override(self, model: ClipConfig) -> ClipConfig:
        """The model's config with its `preprocess` overridden by what is set here."""
        names = (
            "max_patches",
            "resize_mode",
            "interpolation",
            "mean",
            "std",
            "tokenizer",
            "text_length",
            "padding",
            "pad_id",
            "lower_case",
            "canonicalize",
        )
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if isinstance(self.max_patches, tuple):
            del changes["max_patches"]  # of training alone
            if changes.get("resize_mode", model.preprocess.resize_mode) != "naflex":
                raise ValueError(f"max_patches are lengths of naflex sequences; got {list(self.max_patches)} without")
        if changes.get("resize_mode", model.preprocess.resize_mode) != "naflex":
            changes.setdefault("max_patches", 0)  # a model of sequences may be given pictures of one size
        towers: dict[str, Any] = {}
        if self.image_size is not None:
            if model.vision is None:
                raise ValueError(f"image_size is the image tower's, and this model has none; got {self.image_size}")
            towers["vision"] = dataclasses.replace(model.vision, image_size=self.image_size)
            changes["size"] = self.image_size
        for name, tower in (("text", model.text), ("decoder", model.decoder)):
            if tower is not None and self.text_length is not None and self.text_length > tower.max_length:
                towers[name] = dataclasses.replace(tower, max_length=self.text_length)
        return dataclasses.replace(model, **towers, preprocess=dataclasses.replace(model.preprocess, **changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """A run that begins where another one was: its parameters, optimizer, schedule and position in the data.

    What differs in this run's config counts from there on, such as a lower learning rate, or a cooldown.

    Attributes:
        run: the other's directory: a local path, `gs://` or `s3://`.
        step: of the checkpoint; by default the newest.
    """

    run: str
    step: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        output_dir: where all that the run writes goes: a local path, `gs://` or `s3://`.
        model: which.
        data: what it learns from.
        global_batch_size: pairs in an update, over all devices: what the loss sees.
        train_samples: how long: pairs, or `"30 epochs"`.
        microbatch_size: pairs whose activations are held at once, over all devices; by default the global batch.
        loss: which.
        optimizer: which, and its numbers.
        schedule: of the learning rate.
        ema: whether moving averages of the parameters are kept.
        branch: another run's checkpoint to begin at.
        evaluation: what is measured on held-out data.
        mesh: how many devices each mesh axis spans; by default what `sharding` needs.
        sharding: `replicated`, `fsdp`, `tensor`, `fsdp+tensor`, or `auto`: replicated while parameters and optimizer
            fit on one device, then `fsdp`. Or clip-jax's partition, `{"activation_dims": 1, "parameter_dims": 2}`. Or a
            list of your own rules, `[logical axis, mesh axis or list of them]`; earlier ones choose first.
        precision: of the towers' arithmetic; `auto` is bfloat16 on accelerators and float32 on CPUs. Parameters, norms,
            softmax and loss are float32.
        remat: activations that are computed again instead of kept.
        attention: how the towers compute it: `auto`, `xla`, `cudnn` or `splash`; by default as the model says, which is
            `auto` unless its config was written otherwise.
        unroll: layers in a turn of the loop over them, which compile longer; by default as the model says, which is 1.
        checkpoint: when.
        log: where.
        guard: what is done about a step whose loss or gradient is not finite, or whose loss jumps.
        seed: of the initial weights, the data order and dropout.
    """

    __pydantic_config__ = STRICT

    output_dir: str
    model: ModelConfig
    data: TrainDataConfig
    global_batch_size: int
    train_samples: Length
    microbatch_size: int | None = None
    loss: LossConfig = LossConfig()
    optimizer: Optimizer = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = None
    branch: BranchConfig | None = None
    evaluation: tuple[EvaluationConfig, ...] = ()
    mesh: MeshConfig | None = None
    sharding: Sharding = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Remat = "none"
    attention: AttentionImplementation | None = None
    unroll: int | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    guard: GuardConfig = GuardConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no directory, batches that do not divide, no sample, and two evaluations of one name."""
        if "://" in self.output_dir and not self.output_dir.startswith(REMOTE):
            raise ValueError(
                f"output_dir is a directory: a path in the file system, {' or '.join(REMOTE)}; got {self.output_dir!r}"
            )
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size is at least 1; got {self.global_batch_size}")
        check_length(self.train_samples, "train_samples")
        micro = self.microbatch_size
        if micro is not None and (micro < 1 or self.global_batch_size % micro):
            raise ValueError(
                f"microbatch_size divides global_batch_size; got {micro} and {self.global_batch_size}. "
                f"The nearest that does is {_nearest_divisor(self.global_batch_size, micro)}"
            )
        names = [evaluation.name for evaluation in self.evaluation]
        if len(set(names)) < len(names):
            raise ValueError(f"each evaluation has a name of its own; got {names}")


def _nearest_divisor(number: int, near: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))
