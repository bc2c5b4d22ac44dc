"""Learning from a teacher: how it compares the pictures and texts of a batch, as one more loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clip_train.microbatches import split_rows

Compared = tuple[jax.Array, jax.Array, jax.Array | float]

# Logits of student and teacher that a device holds at once, in each direction.
_LOGITS_AT_ONCE = 2**24


def distillation_loss(student: Compared, teacher: Compared, *, num_devices: int = 1) -> jax.Array:
    """The divergence of the student's matches from the teacher's, averaged over rows and both directions.

    With p the softmax of a row of the teacher's logits and q that of the student's, a row contributes
    KL(p ‖ q) = Σ p (log p − log q): 0 where both agree. Rows are compared in turns, so that memory does not grow with
    the square of the batch.

    Args:
        student: image embeddings `[n, e]`, text embeddings `[n, e]`, both of unit norm, and the multiplier of their
            similarities.
        teacher: likewise, of a width of its own; it gets no gradient.
        num_devices: that the rows are divided over.

    Returns:
        float32 [].

    References:
        open_clip's `DistillClipLoss`, to which this adds the teacher's entropy, a constant.

    Example:
        >>> x = jnp.eye(3)
        >>> print(distillation_loss((x, x, 5.0), (x, x, 5.0)))
        0.0
    """
    teacher = jax.lax.stop_gradient(teacher)
    there = _one_way(student, teacher, num_devices)
    back = _one_way((student[1], student[0], student[2]), (teacher[1], teacher[0], teacher[2]), num_devices)
    return (there + back) / 2


def _one_way(student: Compared, teacher: Compared, num_devices: int) -> jax.Array:
    queries, keys, scale = student
    teacher_queries, teacher_keys, teacher_scale = teacher
    num = len(queries)

    @jax.checkpoint
    def divergence(rows: jax.Array, teacher_rows: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(scale * _dots(rows, keys))
        log_p = jax.nn.log_softmax(teacher_scale * _dots(teacher_rows, teacher_keys))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    turns = _turns(num, num_devices)
    if turns == 1:
        return divergence(queries, teacher_queries) / num
    split = (split_rows(queries, turns), split_rows(teacher_queries, turns))
    total, _ = jax.lax.scan(lambda sum_, rows: (sum_ + divergence(*rows), None), jnp.zeros(()), split)
    return total / num


def _dots(rows: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.einsum("qe,ne->qn", rows, keys, precision="highest", preferred_element_type=jnp.float32)


def _turns(num: int, num_devices: int) -> int:
    """The fewest turns that divide the rows of each device and keep to the bound; as many as there are rows at most."""
    own = num // num_devices
    return next((n for n in range(1, own + 1) if own % n == 0 and own // n * num <= _LOGITS_AT_ONCE), own)
