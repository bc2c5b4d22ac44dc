"""What a run is told of one evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clip_data import SourceConfig
from clip_train.optimizers.schedule import Length, check_length
from clip_train.probe import ProbeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation, run before the first step, at the end, and on the way if `every` says so.

    Attributes:
        name: what its results are called.
        task: `zeroshot_classification` by text prompts, `zeroshot_retrieval` both ways, or `linear_probe`, a classifier
            on the image embeddings.
        data: where the samples are; classification and probe need labels, retrieval captions.
        train: where the probe learns; `None` for the other tasks.
        validation: where the probe's weight decay is chosen; without it there is none.
        every: how much training between two evaluations; `None` is before and after it only, and of a probe, which is
            trained each time, after it only.
        classnames: a file with one name per line, the names, or a standard data set such as `imagenet1k`; by default
            `classnames.txt` beside the shards or in the folder above, also in a bucket, as CLIP_benchmark lays it out.
        templates: likewise the prompts, each with `{c}` for the name, or for each class its own prompts, also in a JSON
            file; by default `zeroshot_classification_templates.txt`.
        multi_label: whether a sample may have several labels, in a field `npy` or a list in `label`; by default what
            `dataset_type.txt` beside the class names says.
        positives: what retrieval counts as a match: a `pair` as it is stored, all with equal `caption`, or all of one
            `label`. A picture may have several captions: a list, or in WebDataset one on each line.
        probe: how the probe is trained.
        batch_size: images encoded at once over all devices.
    """

    name: str
    task: Literal["zeroshot_classification", "zeroshot_retrieval", "linear_probe"]
    data: SourceConfig
    train: SourceConfig | None = None
    validation: SourceConfig | None = None
    every: Length | None = None
    classnames: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] | dict[str, tuple[str, ...]] | None = None
    multi_label: bool | None = None
    positives: Literal["pair", "caption", "label"] = "pair"
    probe: ProbeConfig = ProbeConfig()
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no length, batches below one, and a probe without samples to learn from."""
        if self.every is not None:
            check_length(self.every, "every")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")
        if (self.task == "linear_probe") != (self.train is not None):
            raise ValueError(
                f"train holds the labelled samples that a linear_probe learns from, and belongs to no other task; got "
                f"task {self.task!r} {'without' if self.train is None else 'with'} train"
            )
