"""A tower and a head as one function, and as a directory that is opened again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from clip_finetune.backbone import feature_width, run_tower, tower_features, tower_inputs, tower_of
from clip_finetune.config import FeatureKind
from clip_finetune.heads import AttentionHead, LinearHead
from clip_finetune.huggingface import open_classifier, why_not, write_classifier
from clip_models import ClipConfig, load_pretrained, save_pretrained
from clip_train.output import write_json

_HEAD, _ABOUT = "head.npz", "classifier.json"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Pictures or texts to logits. Its parameters are `{"vision" or "text": the tower's, "head": the head's}`.

    Attributes:
        config: of the model, one tower alone.
        classnames: in label order.
        features: what a linear head sees; `None` with an attention head, which sees all last vectors.
        multi_label: whether a sample may have several labels: probabilities are then sigmoids, and else a softmax.
    """

    config: ClipConfig
    classnames: tuple[str, ...]
    features: FeatureKind | None
    multi_label: bool = False

    @property
    def width(self) -> int:
        """Of what the head sees."""
        return feature_width(self.config, self.features or "mean")

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
            arrays: of pictures as `clip_train.inputs.image_arrays` makes them, or float `[b, h, w, 3]` in [0, 255]; of
                texts `input_ids` and `attention_mask`, int32 `[b, t]`.
            key: of what training drops at random.
        """
        return self.logits_of_inputs(params, tower_inputs(self.config, arrays), key)

    def logits_of_inputs(self, params: Mapping[str, Any], inputs: Any, key: jax.Array | None = None) -> jax.Array:
        """The same of what `encode_image` takes, such as `clip_models.preprocess_images` makes, by its names."""
        head = self.head
        if isinstance(head, LinearHead):
            return head.apply(params["head"], tower_features(self.config, params, inputs, self.features or "mean", key))
        last = run_tower(self.config, params, inputs, key)
        return head.apply(params["head"], last.hidden, last.mask)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities float32 `[n, c]` of logits `[n, c]`."""
        return np.asarray(jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits, axis=-1))

    def save(self, directory: Path, params: Mapping[str, Any], *, format: Literal["auto", "clip-jax"] = "auto") -> str:
        """Write tower, head and class names; `load_classifier` opens them, and `load_pretrained` the tower.

        Args:
            directory: made if it is not there.
            params: the tower's and the head's.
            format: `auto` is a Hugging Face directory where transformers has a class for the classifier: CLIP's or
                SigLIP's image tower with a linear head on the mean of its patches, `features` `mean`.

        Returns:
            transformers' class, or why there is none.
        """
        tower = tower_of(self.config)
        reason = self.why_not_transformers()
        if format == "auto" and reason is None:
            arrays = {"vision": params["vision"], "head": params["head"]}
            return write_classifier(directory, self.config, arrays, self.classnames, multi_label=self.multi_label)
        save_pretrained(directory, self.config, {tower: params[tower]})
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in params["head"].items()}
        np.savez(directory / _HEAD, **arrays)
        about: dict[str, Any] = {"classnames": list(self.classnames), "features": self.features}
        write_json(directory / _ABOUT, {**about, "multi_label": self.multi_label})
        return reason or "our own format was asked for"

    def why_not_transformers(self) -> str | None:
        """What keeps it from being a classifier of transformers; `None`: nothing."""
        if tower_of(self.config) == "text":
            return "transformers has no class that classifies texts on CLIP's or SigLIP's tower"
        if self.features != "mean":
            given = self.features or "an attention head"
            return f"transformers' classifiers have a linear head on the mean of the patches; this one has {given}"
        return why_not(self.config)


def load_classifier(directory: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Open what `Classifier.save` wrote, or a classifier of transformers: CLIP's, SigLIP's or SigLIP 2's.

    Args:
        directory: that, or the `output_dir` of the task.

    Returns:
        The classifier and its parameters.

    Raises:
        FileNotFoundError: there is none.
    """
    for found in (Path(directory), Path(directory) / "classifier"):
        if (found / _ABOUT).is_file():
            break
        if (opened := open_classifier(found)) is not None:
            return Classifier(opened.config, opened.classnames, "mean", opened.multi_label), opened.params
    else:
        raise FileNotFoundError(f"{directory} holds no classifier; make one: clip-finetune classify, or text")
    about = json.loads((found / _ABOUT).read_text(encoding="utf-8"))
    config, params = load_pretrained(found)
    with np.load(found / _HEAD) as arrays:
        head = {name: arrays[name] for name in arrays.files}
    features: FeatureKind | None = about["features"]
    classifier = Classifier(config, tuple(about["classnames"]), features, about["multi_label"])
    return classifier, {**params, "head": head}
