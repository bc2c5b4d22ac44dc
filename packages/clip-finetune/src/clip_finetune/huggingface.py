"""Image classifiers as Hugging Face's transformers keeps them: a linear head on the mean of a tower's patches.

CLIPForImageClassification, SiglipForImageClassification and Siglip2ForImageClassification all pool so; of CLIP the
class token is left out, and its last norm, which is for that token alone, is not applied.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_models import ClipConfig, load_pretrained, save_pretrained
from clip_models.formats.huggingface import find_model_type
from clip_train.output import write_json

CLASSES = {
    "clip_vision_model": "CLIPForImageClassification",
    "siglip_vision_model": "SiglipForImageClassification",
    "siglip2_vision_model": "Siglip2ForImageClassification",
}
_WEIGHTS = "model.safetensors"
_NOT_THE_TOWERS = ("architectures", "model_type", "dtype", "projection_dim")


class Opened(NamedTuple):
    """A classifier that was read.

    Attributes:
        config: of its image tower.
        params: `vision` and `head`.
        classnames: in label order.
        multi_label: whether a picture may have several labels.
    """

    config: ClipConfig
    params: dict[str, Any]
    classnames: tuple[str, ...]
    multi_label: bool


def why_not(config: ClipConfig) -> str | None:
    """What keeps an image tower from being a classifier of transformers; `None`: nothing.

    Args:
        config: of the tower alone.
    """
    model_type, lost = find_model_type(_bare(config))
    if model_type not in CLASSES:
        return f"transformers has no such class for a tower of type {model_type}"
    return f"Hugging Face's {model_type} cannot express {', '.join(lost)}" if lost else None


def write_classifier(
    directory: Path, config: ClipConfig, params: Mapping[str, Any], classnames: tuple[str, ...], *, multi_label: bool
) -> str:
    """Write a directory that transformers and `load_classifier` open.

    Args:
        directory: made if it is not there.
        config: of an image tower, for which `why_not` has nothing to say.
        params: `vision`, and `head` with `kernel` `[d, c]` and `bias` `[c]`, on the mean of the patches.
        classnames: c of them.
        multi_label: whether a picture may have several labels.

    Returns:
        The name of the class.
    """
    from safetensors.numpy import load_file, save_file

    bare = _bare(config)
    model_type, _ = find_model_type(bare)
    vision = {name: value for name, value in params["vision"].items() if name != "projection"}
    save_pretrained(directory, bare, {"vision": vision}, format="huggingface")
    tensors = load_file(directory / _WEIGHTS)
    tensors |= {
        "classifier.weight": np.ascontiguousarray(np.asarray(params["head"]["kernel"]).T),
        "classifier.bias": np.asarray(params["head"]["bias"]),
    }
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as beside:
        save_file(tensors, beside.name, metadata={"format": "pt"})
    Path(beside.name).replace(directory / _WEIGHTS)
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tower = {name: value for name, value in written.items() if name not in _NOT_THE_TOWERS}
    family = model_type.removesuffix("_vision_model")
    contents = {
        "architectures": [CLASSES[model_type]],
        "model_type": family,
        "vision_config": {"model_type": model_type, **tower},
        "id2label": {str(i): name for i, name in enumerate(classnames)},
        "label2id": {name: i for i, name in enumerate(classnames)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
        "dtype": written["dtype"],
    }
    write_json(directory / "config.json", contents)
    return CLASSES[model_type]


def open_classifier(directory: Path) -> Opened | None:
    """Open a classifier of transformers; `None` where there is none of these classes.

    Raises:
        ValueError: its tensors are not those of its config.
    """
    file = directory / "config.json"
    contents = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not set(contents.get("architectures") or ()) & set(CLASSES.values()):
        return None
    from safetensors.numpy import load_file

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds a head")  # which is read here
        config, params = load_pretrained(directory)
    tensors = load_file(directory / _WEIGHTS)
    names = contents["id2label"]
    head = {"kernel": tensors["classifier.weight"].T, "bias": tensors["classifier.bias"]}
    return Opened(
        config=config,
        params={"vision": params["vision"], "head": jax.tree.map(np.ascontiguousarray, head)},
        classnames=tuple(names[str(i)] for i in range(len(names))),
        multi_label=contents.get("problem_type") == "multi_label_classification",
    )


def _bare(config: ClipConfig) -> ClipConfig:
    """The tower without its projection, which the mean of patches does not pass."""
    vision = config.vision
    if vision is None:
        raise ValueError("an image classifier has an image tower")
    return dataclasses.replace(config, vision=dataclasses.replace(vision, projection_bias=False), projection_dim=None)
