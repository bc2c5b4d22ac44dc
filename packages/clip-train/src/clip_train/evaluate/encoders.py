"""A model's two towers as host-to-host functions: batches and sentences in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_data import Batch, Tokenizer
from clip_models import ClipConfig, encode_image, encode_text
from clip_sharding import (
    BATCH_AXES,
    batch_readers,
    batch_sharding,
    gather_items,
    gather_rows,
    to_global,
    to_local,
)
from clip_train.inputs import image_arrays, image_inputs


class Encoders:
    """A model's two towers, compiled for a mesh; they take host batches and give host embeddings.

    Of several processes each encodes the pictures that it reads itself; `gather` brings together what they found.
    """

    def __init__(self, model: ClipConfig, mesh: Mesh) -> None:
        self._mesh = mesh
        self._num_shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._rows = batch_sharding(mesh)
        self._image = jax.jit(
            lambda params, arrays: encode_image(model, params, **image_inputs(model, arrays)), out_shardings=self._rows
        )
        masks = model.preprocess.mask_padding
        self._text = jax.jit(
            lambda params, ids, mask: encode_text(model, params, ids, mask if masks else None),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    @property
    def readers(self) -> tuple[int, int]:
        """Which part of each batch this process reads, and how many parts there are."""
        return batch_readers(self._mesh)

    def batch_size(self, wanted: int) -> int:
        """The nearest batch size, upwards, that divides over the devices."""
        return -(-wanted // self._num_shards) * self._num_shards

    def images(self, params: Any, batch: Batch) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of the real rows of this process's part of a batch."""
        return to_local(self.start_images(params, batch))[batch.mask]

    def start_images(self, params: Any, batch: Batch) -> jax.Array:
        """Begin to encode the pictures of a batch, and do not wait: float32 `[b, e]`, for `to_local` to fetch."""
        return self._image(params, to_global(image_arrays(batch), self._mesh))

    def start_texts(self, params: Any, batch: Batch) -> jax.Array:
        """Begin to encode the captions of a batch, as `start_images` does its pictures."""
        arrays = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        placed = to_global(arrays, self._mesh)
        return self._text(params, placed["input_ids"], placed["attention_mask"])

    def texts(self, params: Any, tokenizer: Tokenizer, sentences: Sequence[str], *, batch_size: int) -> np.ndarray:
        """Unit-norm embeddings, float32 `[n, e]`, of n sentences, the same ones in every process.

        Each distinct sentence is encoded once: equal ones have equal embeddings, wherever they stand in a batch.
        """
        distinct = {sentence: place for place, sentence in enumerate(dict.fromkeys(sentences))}
        places = [distinct[sentence] for sentence in sentences]
        batch_size = self.batch_size(min(batch_size, len(distinct)))
        chunks, once = [], list(distinct)
        for start in range(0, len(once), batch_size):
            ids, mask = tokenizer(once[start : start + batch_size])
            padding = ((0, batch_size - len(ids)), (0, 0))
            placed = [self._place(np.pad(rows, padding, mode="edge")) for rows in (ids, mask)]
            chunks.append(np.asarray(self._text(params, *placed))[: len(ids)])
        return np.concatenate(chunks)[places]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows `[n, ...]` of all processes, each read once: process after process, whatever is gathered."""
        return gather_rows(rows, self._mesh)

    def gather_items(self, items: list[Any]) -> list[Any]:
        """The same for lists of JSON values, such as captions."""
        return gather_items(items, self._mesh)

    def _place(self, rows: np.ndarray) -> jax.Array:
        """Rows that every process has whole, divided over the devices."""
        return jax.make_array_from_callback(rows.shape, self._rows, rows.__getitem__)
