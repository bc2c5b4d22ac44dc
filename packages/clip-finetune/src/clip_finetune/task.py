"""What there is to learn: the checkpoint, the classes and the samples of each part, found before any computing."""

from __future__ import annotations

from typing import Any, NamedTuple

from clip_data import DataError, SourceConfig
from clip_finetune.backbone import Tower, load_backbone, tower_alone
from clip_finetune.classes import check_classes
from clip_finetune.classifier import Classifier
from clip_finetune.config import FinetuneConfig, SentencesConfig
from clip_finetune.pictures import Pictures
from clip_finetune.samples import Labelled, Part
from clip_finetune.split import Split
from clip_finetune.text_files import read_texts
from clip_finetune.texts import Texts, names_of
from clip_models import ClipConfig
from clip_train.config_file import ConfigError, located
from clip_train.evaluate import is_multi_label, read_classnames

FAULTS = (ValueError, OSError, DataError)
"""What samples can be wrong by."""


class Task(NamedTuple):
    """What there is to learn.

    Attributes:
        config: of the task.
        tower: that learns it.
        model: the checkpoint's config.
        params: its parameters.
        classifier: of the tower alone.
        parts: the samples.
    """

    config: FinetuneConfig
    tower: Tower
    model: ClipConfig
    params: Any
    classifier: Classifier
    parts: dict[Part, Labelled]


def prepare(config: FinetuneConfig, tower: Tower) -> Task:
    """Open the checkpoint and find the samples and their classes.

    Args:
        config: of the task.
        tower: that learns it.

    Raises:
        ConfigError: naming the field, what arrived and what to do.
    """
    with located("model"):
        model, params = load_backbone(config.model, tower=tower)
    alone = tower_alone(model, tower)
    if config.tune.augment.changes and alone.preprocess.resize_mode == "naflex":
        raise ConfigError(
            "tune.augment: sequences of patches (resize_mode naflex) are trained on as they come; leave it out"
        )
    multi_label = is_multi_label(config.multi_label, config.train)
    parts = _texts(config, multi_label) if tower == "text" else _pictures(config, multi_label)
    classifier = Classifier(
        alone, parts["train"].classnames, None if config.mode == "attention" else config.feature_kind, multi_label
    )
    return Task(config, tower, model, params, classifier, parts)


def split_of(config: FinetuneConfig | SentencesConfig, part: Part) -> Split | None:
    """Which samples of `train` are in a part; `None`: those of a source of its own, or all."""
    given = {"train": None, "validation": config.validation, "test": config.test}[part]
    if given is not None:
        return None
    return Split(
        part=part,
        validation=0.0 if config.validation else config.split.validation,
        test=0.0 if config.test else config.split.test,
        seed=config.seed,
    )


def sources_of(config: FinetuneConfig | SentencesConfig) -> dict[Part, SourceConfig]:
    """Where the samples of each part are."""
    return {
        "train": config.train,
        "validation": config.validation or config.train,
        "test": config.test or config.train,
    }


def _pictures(config: FinetuneConfig, multi_label: bool) -> dict[Part, Labelled]:
    given = [source for source in (config.validation, config.test) if source is not None]
    with located("classnames"):
        classnames = read_classnames(config.classnames, config.train)
        check_classes(config.train, classnames, given)
    return {
        part: Pictures(source, classnames, multi_label, split_of(config, part))
        for part, source in sources_of(config).items()
    }


def _texts(config: FinetuneConfig, multi_label: bool) -> dict[Part, Labelled]:
    read = {}
    for part, source in sources_of(config).items():
        with located(part if getattr(config, part) else "train", FAULTS):
            read[part] = read["train"] if source is config.train and read else read_texts(source)
    with located("classnames"):
        named = names_of(read["train"])
        classnames = named if named and config.classnames is None else read_classnames(config.classnames, config.train)
        check_classes(config.train, classnames)
    parts: dict[Part, Labelled] = {}
    for part, source in sources_of(config).items():
        texts = Texts.of(
            read[part],
            classnames,
            where=", ".join(source.patterns),
            multi_label=multi_label,
            split=split_of(config, part),
        )
        with located(part if getattr(config, part) else "train"):
            texts.targets()
        parts[part] = texts
    return parts
