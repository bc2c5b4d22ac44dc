"""The pairwise sigmoid loss of SigLIP."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

AxisName = str | tuple[str, ...]
Grads = tuple[Array, Array, Array, Array]


def sigmoid_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array | float,
    logit_bias: Array | float = 0.0,
    *,
    image_ids: Array | None = None,
    text_ids: Array | None = None,
    mask: Array | None = None,
    tile: int | tuple[int, int] | Literal["auto"] = "auto",
    impl: Literal["auto", "dense", "tiled"] = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Literal["mean", "sum"] = "mean",
    axis_name: AxisName | None = None,
    comm: Literal["ring", "all_gather"] = "ring",
) -> Array:
    """Sum over pairs of the binary cross-entropy of their logits, divided by the number of rows."""
    rows = {"image": image_embeds, "text": text_embeds, "image_ids": image_ids, "text_ids": text_ids, "mask": mask}
    rows = {name: value for name, value in rows.items() if value is not None}
    cols, offset = rows, 0
    if axis_name is not None:
        offset = lax.axis_index(axis_name) * image_embeds.shape[0]
        cols = {name: lax.all_gather(value, axis_name, tiled=True) for name, value in rows.items()}
    x = jnp.asarray(logit_scale) * jnp.matmul(
        rows["image"], cols["text"].T, precision=precision, preferred_element_type=jnp.float32
    ) + jnp.asarray(logit_bias)
    positive = (jnp.arange(x.shape[0]) + offset)[:, None] == jnp.arange(x.shape[1])[None]
    for name in ("image_ids", "text_ids"):
        if name in rows:
            positive |= rows[name][:, None] == cols[name][None]
    losses = jax.nn.softplus(jnp.where(positive, -x, x))
    count = jnp.asarray(float(x.shape[0]))
    if mask is not None:
        losses = jnp.where(rows["mask"][:, None] & cols["mask"][None], losses, 0.0)
        count = rows["mask"].sum().astype(jnp.float32)
    total = losses.sum()
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1) if reduction == "mean" else total


def sigmoid_loss_and_grads(
    image_embeds: Array, text_embeds: Array, logit_scale: Array | float, logit_bias: Array | float = 0.0, **options
) -> tuple[Array, Grads]:
    """The loss and its gradients with respect to the four positional arguments."""
    operands = image_embeds, text_embeds, jnp.asarray(logit_scale, float), jnp.asarray(logit_bias, float)
    return jax.value_and_grad(lambda *args: sigmoid_loss(*args, **options), argnums=(0, 1, 2, 3))(*operands)


def sharded_sigmoid_loss(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array | float,
    logit_bias: Array | float = 0.0,
    *,
    mesh: Mesh,
    axis_name: AxisName = "data",
    image_ids: Array | None = None,
    text_ids: Array | None = None,
    mask: Array | None = None,
    tile: int | tuple[int, int] | Literal["auto"] = "auto",
    impl: Literal["auto", "dense", "tiled"] = "auto",
    precision: lax.PrecisionLike = None,
    reduction: Literal["mean", "sum"] = "mean",
    comm: Literal["ring", "all_gather"] = "ring",
) -> Array:
    """The sigmoid loss of global arrays whose rows are split over axes of a mesh."""
    split, whole = PartitionSpec(axis_name), PartitionSpec()

    def local(image_embeds, text_embeds, logit_scale, logit_bias, ids_and_mask):
        return sigmoid_loss(
            image_embeds,
            text_embeds,
            logit_scale,
            logit_bias,
            **ids_and_mask,
            tile=tile,
            impl=impl,
            precision=precision,
            reduction=reduction,
            axis_name=axis_name,
            comm=comm,
        )

    return jax.shard_map(local, mesh=mesh, in_specs=(split, split, whole, whole, split), out_specs=whole)(
        image_embeds,
        text_embeds,
        jnp.asarray(logit_scale, float),
        jnp.asarray(logit_bias, float),
        {"image_ids": image_ids, "text_ids": text_ids, "mask": mask},
    )


def sharded_sigmoid_loss_and_grads(
    image_embeds: Array, text_embeds: Array, logit_scale: Array | float, logit_bias: Array | float = 0.0, **options
) -> tuple[Array, Grads]:
    """The sharded loss and its gradients with respect to the four positional arguments."""
    operands = image_embeds, text_embeds, jnp.asarray(logit_scale, float), jnp.asarray(logit_bias, float)
    return jax.value_and_grad(lambda *args: sharded_sigmoid_loss(*args, **options), argnums=(0, 1, 2, 3))(*operands)
