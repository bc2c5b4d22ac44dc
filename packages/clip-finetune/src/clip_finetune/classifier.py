"""A tower and a head as one function, and as a directory that is opened again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from clip_finetune.backbone import tower_features
from clip_finetune.config import FeatureKind
from clip_finetune.heads import AttentionHead, LinearHead
from clip_models import ClipConfig, image_features, load_pretrained, save_pretrained
from clip_train.inputs import image_inputs
from clip_train.output import write_json

_HEAD, _ABOUT = "head.npz", "classifier.json"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Pictures to logits. Its parameters are `{"vision": the tower's, "head": the head's}`.

    Attributes:
        config: of the model, an image tower alone.
        classnames: in label order.
        features: what a linear head sees; `None` with an attention head, which sees all last vectors.
        multi_label: whether a picture may have several labels: probabilities are then sigmoids, and else a softmax.
    """

    config: ClipConfig
    classnames: tuple[str, ...]
    features: FeatureKind | None
    multi_label: bool = False

    @property
    def width(self) -> int:
        """Of what the head sees."""
        vision = self.config.vision
        if vision is None:
            raise ValueError("a classifier of pictures has an image tower")
        pooled = vision.width * (vision.num_queries if vision.pool == "map" else 1)
        if self.features == "embedding":
            return pooled if self.config.projection_dim is None else self.config.projection_dim
        return {"pooled": pooled, "pooled+mean": pooled + vision.width}.get(self.features or "", vision.width)

    @property
    def head(self) -> LinearHead | AttentionHead:
        """The head's own function."""
        if self.features is not None:
            return LinearHead(num_classes=len(self.classnames), width=self.width)
        num_heads = next(n for n in range(max(self.width // 64, 1), 0, -1) if self.width % n == 0)
        return AttentionHead(num_classes=len(self.classnames), width=self.width, num_heads=num_heads)

    def logits(
        self, params: Mapping[str, Any], arrays: dict[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 `[b, c]`.

        Args:
            params: the tower's and the head's.
            arrays: as `clip_train.inputs.image_arrays` makes them, or pictures float `[b, h, w, 3]` in [0, 255].
            key: of what training drops at random.
        """
        return self.logits_of_inputs(params, image_inputs(self.config, arrays), key)

    def logits_of_inputs(self, params: Mapping[str, Any], inputs: Any, key: jax.Array | None = None) -> jax.Array:
        """The same of what `encode_image` takes, such as `clip_models.preprocess_images` makes, by its names."""
        head = self.head
        if isinstance(head, LinearHead):
            return head.apply(params["head"], tower_features(self.config, params, inputs, self.features or "mean", key))
        hidden = image_features(self.config, params, key=key, **inputs).hidden
        return head.apply(params["head"], hidden, inputs.get("pixel_attention_mask"))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities float32 `[n, c]` of logits `[n, c]`."""
        return np.asarray(jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits, axis=-1))

    def save(self, directory: Path, params: Mapping[str, Any]) -> None:
        """Write tower, head and class names; `load_classifier` opens them, and `load_pretrained` the tower."""
        save_pretrained(directory, self.config, {"vision": params["vision"]})
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in params["head"].items()}
        np.savez(directory / _HEAD, **arrays)
        about: dict[str, Any] = {"classnames": list(self.classnames), "features": self.features}
        write_json(directory / _ABOUT, {**about, "multi_label": self.multi_label})


def image_tower_of(config: ClipConfig) -> ClipConfig:
    """The config of a model's image tower alone."""
    preprocess = dataclasses.replace(config.preprocess, tokenizer=None)
    return dataclasses.replace(config, text=None, decoder=None, preprocess=preprocess)


def load_classifier(directory: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Open what `Classifier.save` wrote.

    Args:
        directory: that, or the `output_dir` of the task.

    Returns:
        The classifier and its parameters.

    Raises:
        FileNotFoundError: there is none.
    """
    places = [Path(directory), Path(directory) / "classifier"]
    found = next((place for place in places if (place / _ABOUT).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{directory} holds no classifier; make one: clip-finetune classify")
    about = json.loads((found / _ABOUT).read_text(encoding="utf-8"))
    config, params = load_pretrained(found)
    with np.load(found / _HEAD) as arrays:
        head = {name: arrays[name] for name in arrays.files}
    features: Literal["embedding", "pooled", "mean", "pooled+mean"] | None = about["features"]
    classifier = Classifier(config, tuple(about["classnames"]), features, about["multi_label"])
    return classifier, {"vision": params["vision"], "head": head}
