"""What a training by gradient trains, judges and keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from clip_finetune.backbone import tower_of
from clip_finetune.classifier import Classifier, load_classifier
from clip_finetune.judge import choice, judge, verdict_metrics
from clip_finetune.objective import SampleLoss, classification_loss
from clip_finetune.samples import Labelled
from clip_models import ClipConfig
from clip_train.augment import AugmentConfig, augment


class Learner(Protocol):
    """A tower, what is on top of it, and what both are trained for."""

    @property
    def config(self) -> ClipConfig:
        """Of the tower alone."""
        ...

    def loss(
        self, params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch whose rows are divided over the mesh, and metrics."""
        ...

    def measure(self, params: dict[str, Any]) -> dict[str, float]:
        """The metrics on the validation samples."""
        ...

    def choice(self, metrics: dict[str, float]) -> float:
        """The one metric that choices are made by."""
        ...

    def save(self, directory: Path, params: dict[str, Any]) -> None:
        """Write tower and head."""
        ...

    def load(self, directory: Path) -> dict[str, Any]:
        """What `save` wrote."""
        ...


@dataclasses.dataclass(frozen=True)
class Classifying:
    """Learns classes.

    Attributes:
        classifier: that does.
        sample_loss: of each sample.
        validation: what it is judged on.
        batch_size: samples judged at once.
        augment: how training pictures vary.
    """

    classifier: Classifier
    sample_loss: SampleLoss
    validation: Labelled
    batch_size: int
    augment: AugmentConfig

    @property
    def config(self) -> ClipConfig:
        """Of the tower alone."""
        return self.classifier.config

    def loss(
        self, params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over samples, and the accuracy."""
        return classification_loss(self._logits, self.sample_loss)(params, batch, key)

    def _logits(self, params: Any, batch: Any, key: jax.Array) -> jax.Array:
        augment_key, drop_key = jax.random.split(key)
        arrays = {name: value for name, value in batch.items() if name != "target"}
        if self.augment.changes and tower_of(self.config) == "vision":
            size = self.config.preprocess.size
            shape = (size, size) if isinstance(size, int) else size
            arrays["image"] = augment(arrays["image"], augment_key, self.augment, size=shape)
        return self.classifier.logits(params, arrays, drop_key)

    def measure(self, params: dict[str, Any]) -> dict[str, float]:
        """CLIP_benchmark's metrics and the calibration error."""
        return verdict_metrics(
            self.classifier, judge(self.classifier, params, self.validation, batch_size=self.batch_size)
        )

    def choice(self, metrics: dict[str, float]) -> float:
        """Accuracy, or mean average precision."""
        return choice(metrics)

    def save(self, directory: Path, params: dict[str, Any]) -> None:
        """Write tower, head and class names."""
        self.classifier.save(directory, params, format="clip-jax")

    def load(self, directory: Path) -> dict[str, Any]:
        """What `save` wrote."""
        return load_classifier(directory)[1]
