"""The symmetric softmax loss of CLIP."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

AxisName = str | tuple[str, ...]
Grads = tuple[Array, Array, Array]


def softmax_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array | float,
    *,
    image_ids: Array | None = None,
    text_ids: Array | None = None,
    mask: Array | None = None,
    label_smoothing: float = 0.0,
    direction: Literal["both", "image_to_text", "text_to_image"] = "both",
    tile: int | tuple[int, int] | Literal["auto"] = "auto",
    impl: Literal["auto", "dense", "tiled"] = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Literal["mean", "sum"] = "mean",
    axis_name: AxisName | None = None,
    comm: Literal["ring", "all_gather"] = "ring",
) -> Array:
    """Mean cross-entropy of matching images to texts and texts to images."""
    rows = {"image": image_embeds, "text": text_embeds, "image_ids": image_ids, "text_ids": text_ids, "mask": mask}
    rows = {name: value for name, value in rows.items() if value is not None}
    cols, offset = rows, 0
    if axis_name is not None:
        offset = lax.axis_index(axis_name) * image_embeds.shape[0]
        cols = {name: lax.all_gather(value, axis_name, tiled=True) for name, value in rows.items()}
    num_cols = cols["image"].shape[0]
    positive = (jnp.arange(rows["image"].shape[0]) + offset)[:, None] == jnp.arange(num_cols)[None]
    for name in ("image_ids", "text_ids"):
        if name in rows:
            positive |= rows[name][:, None] == cols[name][None]
    keep_rows = rows.get("mask", jnp.ones(rows["image"].shape[0], bool))
    keep_cols = cols.get("mask", jnp.ones(num_cols, bool))
    keep = keep_rows[:, None] & keep_cols[None]
    num_kept = keep_cols.sum()

    def one_way(left: Array, right: Array) -> Array:
        x = jnp.asarray(logit_scale) * jnp.matmul(
            left, right.T, precision=precision, preferred_element_type=jnp.float32
        )
        targets = jnp.where(keep, positive, 0.0)
        targets /= jnp.maximum(targets.sum(axis=1, keepdims=True), 1)
        targets = (1 - label_smoothing) * targets + label_smoothing / jnp.maximum(num_kept, 1)
        log_p = jax.nn.log_softmax(jnp.where(keep_cols[None], x, -1e30), axis=1)
        return -jnp.where(keep, targets * log_p, 0.0).sum()

    total = jnp.zeros(())
    if direction != "text_to_image":
        total += one_way(rows["image"], cols["text"])
    if direction != "image_to_text":
        total += one_way(rows["text"], cols["image"])
    if direction == "both":
        total /= 2
    if axis_name is not None:
        total = lax.psum(total, axis_name)
    if reduction == "sum":
        return total
    count = keep_rows.sum() if axis_name is None or mask is None else lax.psum(keep_rows.sum(), axis_name)
    if axis_name is not None and mask is None:
        count = jnp.asarray(num_cols)
    return total / jnp.maximum(count, 1)


def softmax_loss_and_grads(
    image_embeds: Array, text_embeds: Array, logit_scale: Array | float, **options
) -> tuple[Array, Grads]:
    """The loss and its gradients with respect to the three positional arguments."""
    operands = image_embeds, text_embeds, jnp.asarray(logit_scale, float)
    return jax.value_and_grad(lambda *args: softmax_loss(*args, **options), argnums=(0, 1, 2))(*operands)


def sharded_softmax_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array | float,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    image_ids: Array | None = None,
    text_ids: Array | None = None,
    mask: Array | None = None,
    label_smoothing: float = 0.0,
    direction: Literal["both", "image_to_text", "text_to_image"] = "both",
    tile: int | tuple[int, int] | Literal["auto"] = "auto",
    impl: Literal["auto", "dense", "tiled"] = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Literal["mean", "sum"] = "mean",
    comm: Literal["ring", "all_gather"] = "ring",
) -> Array:
    """The softmax loss of global arrays whose rows are split over axes of a mesh."""
    split, whole = PartitionSpec(axis_name), PartitionSpec()

    def local(image_embeds, text_embeds, logit_scale, ids_and_mask):
        return softmax_loss(
            image_embeds,
            text_embeds,
            logit_scale,
            **ids_and_mask,
            label_smoothing=label_smoothing,
            direction=direction,
            tile=tile,
            impl=impl,
            precision=precision,
            reduction=reduction,
            axis_name=axis_name,
            comm=comm,
        )

    return jax.shard_map(local, mesh=mesh, in_specs=(split, split, whole, split), out_specs=whole)(
        image_embeds,
        text_embeds,
        jnp.asarray(logit_scale, float),
        {"image_ids": image_ids, "text_ids": text_ids, "mask": mask},
    )


def sharded_softmax_loss_and_grads(
    image_embeds: Array, text_embeds: Array, logit_scale: Array | float, **options
) -> tuple[Array, Grads]:
    """The sharded loss and its gradients with respect to the three positional arguments."""
    operands = image_embeds, text_embeds, jnp.asarray(logit_scale, float)
    return jax.value_and_grad(lambda *args: sharded_softmax_loss(*args, **options), argnums=(0, 1, 2))(*operands)
