"""From a checkpoint to a task.

The names are loaded when they are first used: `clip-finetune --help` passes through here and must not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_finetune.backbone import load_backbone
    from clip_finetune.classifier import Classifier, load_classifier
    from clip_finetune.config import FinetuneConfig
    from clip_finetune.heads import AttentionHead, LinearHead

__all__ = ["AttentionHead", "Classifier", "FinetuneConfig", "LinearHead", "load_backbone", "load_classifier"]

_HOMES = {
    "AttentionHead": "heads",
    "Classifier": "classifier",
    "FinetuneConfig": "config",
    "LinearHead": "heads",
    "load_backbone": "backbone",
    "load_classifier": "classifier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
