"""A model's two towers as host-to-host functions: batches and sentences in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_data import Batch, Tokenizer
from clip_models import ClipConfig, encode_image, encode_text
from clip_sharding import BATCH_AXES, to_global
from clip_train.inputs import image_arrays, image_inputs


class Encoders:
    """A model's two towers, compiled for a mesh; they take host batches and give host embeddings."""

    def __init__(self, model: ClipConfig, mesh: Mesh) -> None:
        self._mesh = mesh
        self._num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._image = jax.jit(lambda params, arrays: encode_image(model, params, **image_inputs(model, arrays)))
        masks = model.preprocess.mask_padding
        self._text = jax.jit(lambda params, ids, mask: encode_text(model, params, ids, mask if masks else None))

    def batch_size(self, wanted: int) -> int:
        """The nearest batch size, upwards, that divides over the devices."""
        return -(-wanted // self._num_shards) * self._num_shards

    def images(self, params: Any, batch: Batch) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of the real rows of a batch."""
        return np.asarray(self._image(params, to_global(image_arrays(batch), self._mesh)))[batch.mask]

    def texts(self, params: Any, tokenizer: Tokenizer, sentences: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of n sentences."""
        batch_size = self.batch_size(min(batch_size, len(sentences)))
        chunks = []
        for start in range(0, len(sentences), batch_size):
            ids, mask = tokenizer(sentences[start : start + batch_size])
            padding = ((0, batch_size - len(ids)), (0, 0))
            placed = to_global((np.pad(ids, padding, mode="edge"), np.pad(mask, padding, mode="edge")), self._mesh)
            chunks.append(np.asarray(self._text(params, *placed))[: len(ids)])
        return np.concatenate(chunks)
