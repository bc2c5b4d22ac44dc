"""The one config of a fine-tuning run."""

from __future__ import annotations

import dataclasses

from clip_data import SourceConfig
from clip_train.config_file import STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A linear classifier on features that stay as they are.

    Attributes:
        num_steps: updates, each on all training samples.
        learning_rate: the peak; it decays as a cosine.
        weight_decay: strengths to try; the one that is best on a split of the training samples is kept.
        validation_fraction: the size of that split.
    """

    num_steps: int = 300
    learning_rate: float = 0.01
    weight_decay: tuple[float, ...] = (0.01, 0.1, 1.0)
    validation_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps is at least 1; got {self.num_steps}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is above 0; got {self.learning_rate}")
        if not self.weight_decay or min(self.weight_decay) < 0:
            raise ValueError(f"weight_decay lists at least one strength, each ≥ 0; got {list(self.weight_decay)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is between 0 and 1; got {self.validation_fraction}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A classification task on top of a checkpoint.

    Attributes:
        output_dir: where the head and its results go.
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        train: labelled samples to learn from.
        test: labelled samples to report on.
        classnames: a file with one name per line, or the names, in label order; by default `classnames.txt` beside the
            shards or in the folder above.
        probe: the head's training.
        batch_size: images encoded at once.
        seed: of the split and of the head's first weights.
    """

    __pydantic_config__ = STRICT

    output_dir: str
    model: str
    train: SourceConfig
    test: SourceConfig
    classnames: str | tuple[str, ...] | None = None
    probe: ProbeConfig = ProbeConfig()
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches below one."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is at least 1; got {self.batch_size}")
