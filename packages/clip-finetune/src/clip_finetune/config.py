"""The one config of a classification task, of pictures or of texts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clip_data import SourceConfig
from clip_sharding import MeshConfig
from clip_train.augment import AugmentConfig
from clip_train.checkpoint import CheckpointConfig
from clip_train.config import Sharding
from clip_train.config_file import STRICT
from clip_train.optimizers import AdamWConfig, ScheduleConfig
from clip_train.probe import ProbeConfig

Mode = Literal["zero-shot", "probe", "attention", "full", "lora", "wise-ft"]
FeatureKind = Literal["embedding", "pooled", "mean", "pooled+mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How samples are divided where no validation or test samples are given.

    Attributes:
        validation: the share that choices are made by.
        test: the share that is reported on.
    """

    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to learn from."""
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise ValueError(
                f"validation and test are above 0 and leave samples to train on; got {self.validation} and {self.test}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How the modes that train by gradient do it: `attention`, `full`, `lora`, `wise-ft`.

    Attributes:
        epochs: times that the training samples are gone through; the best one on the validation samples is kept.
        batch_size: samples in an update.
        optimizer: AdamW; its `layer_decay` makes early layers learn slower. By default the learning rate is 1e-3 for an
            attention head and for LoRA, and 3e-5 else; the layer decay 0.75.
        schedule: of the learning rate.
        augment: how training pictures vary.
        head: what the head begins as: `zero-shot` from the class names, `probe` fitted to the features, `random`, or
            `auto`: zero-shot for `wise-ft`, random for `attention`, and else the probe.
        lora_rank: of the updates to the tower's matrices.
        lora_alpha: they are scaled by this over the rank.
        alphas: how far from zero-shot to tuned weights `wise-ft` looks, each in [0, 1].
        mesh: sizes of the mesh axes; by default all devices divide the batch.
        sharding: how parameters and optimizer state are divided, as in `clip-train run`; `auto` is `fsdp` where the
            mesh has such an axis, and else `replicated`.
        checkpoint: when what was trained is saved, to continue from; each better epoch is saved besides.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: AdamWConfig = AdamWConfig(weight_decay=0.05)
    schedule: ScheduleConfig = ScheduleConfig(warmup="10%")
    augment: AugmentConfig = AugmentConfig()
    head: Literal["auto", "zero-shot", "probe", "random"] = "auto"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    mesh: MeshConfig | None = None
    sharding: Sharding = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig(keep=1)

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        for name in ("epochs", "batch_size", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas lists at least one number, each in [0, 1]; got {list(self.alphas)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A classification task on top of a checkpoint: of pictures, or of texts, whose field `caption_key` names.

    Attributes:
        output_dir: where the classifier and its results go.
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        train: labelled samples to learn from: shards, or a folder of class folders.
        validation: to make choices by; by default a share of `train`.
        test: to report on; by default a share of `train`.
        split: how large those shares are.
        mode: `zero-shot` learns nothing; `probe` fits a linear head to features of the frozen tower; `attention` trains
            a head that looks at all its patches or tokens; `full` trains the tower too; `lora` adds small updates to
            it; `wise-ft` is `full` from a zero-shot head, and a point between the two.
        features: what a linear head sees: the `embedding`, unit-norm, by which pictures and texts are compared; the
            `pooled` vector before the projection; the `mean` of the last vectors, by which transformers'
            classifiers judge and as which a model is saved for them; or `pooled+mean`;
            `auto` is the embedding with a zero-shot head and else the pooled vector.
        classnames: a file with one name per line, the names in label order, or a standard data set such as `cifar10`;
            by default `classnames.txt` beside the shards or in the folder above, the names of the class folders, or the
            names that are the labels of texts.
        templates: of a zero-shot head, as in an evaluation; by default those beside the shards, or a plain one.
        multi_label: whether a sample may have several labels; by default what `dataset_type.txt` says.
        class_weights: `balanced`, so that every class counts the same, or one for each class.
        label_smoothing: share of a target that is spread over all classes.
        probe: the probe's training: logistic regression to its minimum; `adamw` is sooner done with very many samples.
        tune: the other modes'.
        batch_size: samples encoded at once.
        cache: a directory for the features of frozen towers, which are found there again; `auto` is the user's cache,
            `null` none.
        seed: of the split, the head's first weights and the order of samples.
    """

    __pydantic_config__ = STRICT

    output_dir: str
    model: str
    train: SourceConfig
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    split: SplitConfig = SplitConfig()
    mode: Mode = "probe"
    features: Literal["auto", "embedding", "pooled", "mean", "pooled+mean"] = "auto"
    classnames: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] | dict[str, tuple[str, ...]] | None = None
    multi_label: bool | None = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    probe: ProbeConfig = ProbeConfig(solver="lbfgs")
    tune: TuneConfig = TuneConfig()
    batch_size: int = 256
    cache: str | None = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches below one, smoothing outside its range, and features that a mode cannot use."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1); got {self.label_smoothing}")
        if self.head_from == "zero-shot" and self.features not in ("auto", "embedding"):
            raise ValueError(f"a zero-shot head compares embeddings with texts; got features {self.features!r}")
        if self.mode == "wise-ft" and self.head_from != "zero-shot":
            raise ValueError(f"wise-ft goes from zero-shot weights to tuned ones; got tune.head {self.tune.head!r}")
        if self.mode == "attention" and self.head_from != "random":
            raise ValueError(f"an attention head begins as random; got tune.head {self.tune.head!r}")

    @property
    def head_from(self) -> str:
        """What the head begins as, `auto` decided."""
        if self.mode in ("zero-shot", "probe"):
            return self.mode
        chosen = {"wise-ft": "zero-shot", "attention": "random"}.get(self.mode, "probe")
        return chosen if self.tune.head == "auto" else self.tune.head

    @property
    def feature_kind(self) -> FeatureKind:
        """What a linear head sees, `auto` decided."""
        if self.features != "auto":
            return self.features
        return "embedding" if self.head_from == "zero-shot" else "pooled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencesConfig:
    """Sentence embedding on a checkpoint's text tower.

    Attributes:
        task: says that it is this.
        output_dir: where the model and its results go.
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        train: pairs of sentences that mean the same: a table, or shards; `caption_key` names one sentence's field.
        positive_key: names the other's.
        validation: pairs to make choices by; by default a share of `train`.
        test: pairs to report on; by default a share of `train`.
        scored: pairs with a score of how alike they are, to report on: an STS data set.
        score_key: names the score's field in `scored`.
        split: how large the shares are.
        mode: `zero-shot` learns nothing and measures; `probe` learns a linear projection of features of the frozen
            tower; `full` trains the tower; `lora` small updates to it; `wise-ft` is `full`, and a point between the
            first weights and the tuned ones.
        features: what a vector is made of: the `embedding`, which stays comparable with pictures; the `pooled` vector
            before the projection; the `mean` over the sentence's tokens; or `pooled+mean`.
        dim: width of a linear projection on top, which begins as the identity; by default as wide as the features in
            `probe`, and none else.
        scale: of the cosines in the softmax loss over the sentences of a batch.
        tune: of all modes that learn; its `head` and `augment` are not read.
        batch_size: sentences encoded at once.
        cache: a directory for the features of frozen towers; `auto` is the user's cache, `null` none.
        seed: of the split and the order of pairs.
    """

    __pydantic_config__ = STRICT

    task: Literal["embedding"]
    output_dir: str
    model: str
    train: SourceConfig
    positive_key: str = "positive"
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    scored: SourceConfig | None = None
    score_key: str = "score"
    split: SplitConfig = SplitConfig()
    mode: Literal["zero-shot", "probe", "full", "lora", "wise-ft"] = "full"
    features: FeatureKind = "embedding"
    dim: int | None = None
    scale: float = 20.0
    tune: TuneConfig = TuneConfig()
    batch_size: int = 256
    cache: str | None = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        for name in ("batch_size", "dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if self.scale <= 0:
            raise ValueError(f"scale is above 0; got {self.scale}")
        if self.dim is not None and self.mode == "zero-shot":
            raise ValueError(f"zero-shot learns nothing, so no projection either; leave dim out, got {self.dim}")
