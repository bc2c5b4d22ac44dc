"""A model that is ready to encode: opened by one name, placed on all devices, with its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from clip_data import DataConfig, SourceConfig, Tokenizer
from clip_models import ClipConfig
from clip_models.fingerprint import fingerprints
from clip_sharding import MeshConfig, make_mesh
from clip_train.evaluate import Encoders
from clip_train.inputs import data_config
from clip_train.weights import open_weights


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model in memory.

    Attributes:
        name: what it was opened by; of a directory, its absolute path.
        config: its architecture and what it expects of its inputs.
        params: on every device.
        encoders: its towers.
    """

    name: str
    config: ClipConfig
    params: Any
    encoders: Encoders

    @functools.cached_property
    def fingerprint(self) -> str:
        """By which its weights are known again: those of another checkpoint have another."""
        return hashlib.sha256(json.dumps(fingerprints(self.params)).encode()).hexdigest()[:16]

    def data(self, source: SourceConfig, **options: Any) -> DataConfig:
        """How samples of a source are prepared for it; `options` are other fields of `DataConfig`."""
        return data_config(self.config, (source,), **options)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was trained with.

        Raises:
            ValueError: it has no text tower, or names no tokenizer, or that cannot be opened.
        """
        if self.config.text is None:
            raise ValueError(f"{self.name} has no text tower")
        tokenizer = Tokenizer.of(data_config(self.config))
        if tokenizer is None:
            raise ValueError(f"{self.name} names no tokenizer; set preprocess.tokenizer in its config.json")
        return tokenizer


def open_model(name: str) -> OpenModel:
    """Open a model on all devices, its weights read straight to where they go.

    Args:
        name: a run's directory, a model's directory, or a name on the Hugging Face Hub.

    Raises:
        FileNotFoundError: there is none, or the run has no checkpoint yet.
        ValueError: it is not one of ours, nor of a kind that `load_pretrained` knows.
    """
    config, load = open_weights(name)
    mesh = make_mesh(MeshConfig())
    params = load(NamedSharding(mesh, PartitionSpec()))
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    return OpenModel(name=name, config=config, params=params, encoders=Encoders(config, mesh))
