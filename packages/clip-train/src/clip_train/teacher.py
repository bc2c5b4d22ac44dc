"""Whose embeddings of each batch a student learns from: a frozen model's, or those that the data hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_models import ClipConfig, encode_image, encode_text
from clip_sharding import batch_sharding
from clip_train.augment import AugmentConfig, augment
from clip_train.inputs import STORED, both_towers, image_inputs
from clip_train.microbatches import join_rows, split_rows
from clip_train.objective import TeacherColumns

TaughtBatches = Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
"""Adds `teacher_image` and `teacher_text`, float32 `[b, e]`, whose products are the logits, to a batch on the mesh."""


class Teacher:
    """A frozen model on a mesh.

    Args:
        config: of the teacher.
        params: its parameters, on the mesh.
        student: the model that learns; pictures and tokens come as it takes them.
        mesh: the devices.
        scale: multiplies its similarities. None: its own logit scale.
        num_microbatches: in which a batch is embedded.

    Raises:
        ValueError: the teacher cannot read the student's pictures or tokens.
    """

    def __init__(
        self,
        config: ClipConfig,
        params: Any,
        student: ClipConfig,
        mesh: Mesh,
        *,
        scale: float | None = None,
        num_microbatches: int = 1,
    ) -> None:
        check_teacher(config, student)
        scale = math.exp(float(params["logit_scale"])) if scale is None else scale
        self._params = params
        self._embed = teaching(config, mesh, scale=scale, num_microbatches=num_microbatches)

    def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch with `teacher_image` and `teacher_text`, as `TaughtBatches`."""
        return batch | self._embed(self._params, batch)


def teaching(config: ClipConfig, mesh: Mesh, *, scale: float, num_microbatches: int) -> Any:
    """The program of a `Teacher`: `(params, batch) -> embeddings`, jitted, of the arguments that it is given there."""
    rows = batch_sharding(mesh)
    return jax.jit(
        lambda params, batch: _embed(config, params, batch, scale, num_microbatches),
        out_shardings={"teacher_image": rows, "teacher_text": rows},
    )


class StoredTeacher:
    """A teacher's embeddings that come with the records.

    Args:
        columns: which they are.
        scale: multiplies their cosine similarities.
        mesh: the devices.
    """

    def __init__(self, columns: TeacherColumns, scale: float, mesh: Mesh) -> None:
        self._names = [STORED + columns.image, STORED + columns.text]
        rows = batch_sharding(mesh)
        self._scale = jax.jit(lambda image, text: (scale * _unit(image), _unit(text)), out_shardings=(rows, rows))

    def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch with `teacher_image` and `teacher_text`, as `TaughtBatches`, in place of the columns."""
        image, text = self._scale(*(batch[name] for name in self._names))
        rest = {name: array for name, array in batch.items() if name not in self._names}
        return rest | {"teacher_image": image, "teacher_text": text}


def _unit(embeds: jax.Array) -> jax.Array:
    return embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)


def check_teacher(teacher: ClipConfig, student: ClipConfig) -> None:
    """Refuse a teacher that cannot read the student's pictures or tokens."""
    _, text = both_towers(teacher)
    _, own = both_towers(student)
    if student.preprocess.resize_mode == "naflex" or teacher.preprocess.resize_mode == "naflex":
        raise ValueError("a teacher and its student take whole pictures; sequences of patches (naflex) are not shared")
    ours, theirs = student.preprocess, teacher.preprocess
    if text.vocab_size != own.vocab_size or ours.text_length > text.max_length:
        raise ValueError(
            f"a teacher reads the student's tokens: {own.vocab_size} ids and {ours.text_length} tokens; this one "
            f"knows {text.vocab_size} ids and reads {text.max_length} tokens"
        )
    for name in ("lower_case", "canonicalize", "mask_padding"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"a teacher reads texts prepared as the student's; its {name} is {getattr(theirs, name)}, "
                f"the student's {getattr(ours, name)}"
            )


def _embed(
    config: ClipConfig, params: Any, batch: dict[str, jax.Array], scale: float, num_microbatches: int
) -> dict[str, jax.Array]:
    size = both_towers(config)[0].image_shape

    def embed(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
        pictures = {"image": augment(part["image"], None, AugmentConfig(), size=size)}
        mask = part["attention_mask"] if config.preprocess.mask_padding else None
        return {
            "teacher_image": scale * encode_image(config, params, **image_inputs(config, pictures)),
            "teacher_text": encode_text(config, params, part["input_ids"], mask),
        }

    batch = {name: batch[name] for name in ("image", "input_ids", "attention_mask")}
    if num_microbatches == 1:
        return embed(batch)
    return jax.tree.map(join_rows, jax.lax.map(embed, jax.tree.map(lambda x: split_rows(x, num_microbatches), batch)))
