"""What a run is told of one evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clip_data import SourceConfig
from clip_train.optimizers.schedule import Length, check_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation, run at the end and on the way if `every` says so.

    Attributes:
        name: what its results are called.
        task: `zeroshot_classification` by text prompts, or `zeroshot_retrieval` both ways.
        data: where the samples are; classification needs labels, retrieval captions.
        every: how much training between two evaluations; `None` is at the end only.
        classnames: a file with one name per line, or the names; by default `classnames.txt` beside the shards or in the
            folder above, as CLIP_benchmark lays it out.
        templates: likewise the prompts, each with `{c}` for the name; by default
            `zeroshot_classification_templates.txt`.
        positives: what retrieval counts as a match: the same `caption`, or the same `label`.
        batch_size: images encoded at once over all devices.
    """

    name: str
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    data: SourceConfig
    every: Length | None = None
    classnames: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] | None = None
    positives: Literal["caption", "label"] = "caption"
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what is no length and batches below one."""
        if self.every is not None:
            check_length(self.every, "every")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")
