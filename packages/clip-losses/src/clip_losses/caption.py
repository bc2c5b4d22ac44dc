"""Token cross-entropy for captioning decoders; the decoder and its shifting of labels belong to the caller."""

import jax
import jax.numpy as jnp
from jax import Array


def caption_loss(
    logits: Array, labels: Array, mask: Array | None = None, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """Mean cross-entropy of the kept tokens, in float32.

    With ``lse`` the log-sum-exp of a token's logits ``x`` over the ``v`` words, each token contributes
    ``lse − (1 − ε)·x[label] − ε·mean(x) + z_loss·lse²``.

    >>> import jax.numpy as jnp
    >>> logits = jnp.zeros((2, 3, 8))
    >>> labels = jnp.array([[1, 2, 0], [3, 0, 0]])
    >>> print(f"{caption_loss(logits, labels, mask=labels != 0):.4f}")  # log 8
    2.0794

    Args:
        logits: ``[..., t, v]`` floating.
        labels: ``[..., t]`` integer in ``[0, v)``. One outside it makes the loss NaN, unless masked.
        mask: ``[..., t]`` bool, or None to keep all. Where it is False a token is dropped, whatever it holds.
        label_smoothing: ``ε`` in ``[0, 1)``, the share of the target spread evenly over the words.
        z_loss: Weight of ``lse²``, which keeps the softmax normaliser near 1; PaLM uses 1e-4.

    Returns:
        A float32 scalar; 0 when no token is kept.

    Raises:
        ValueError: If shapes or dtypes do not fit, or ``label_smoothing`` is out of range.

    References:
        Yu et al., "CoCa", 2022 (arXiv 2205.01917). Chowdhery et al., "PaLM", 2022 (arXiv 2204.02311), section 5.
    """
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels must have the shape of logits without its last axis, got logits {logits.shape} and "
            f"labels {labels.shape}; shift and trim both to the same tokens"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"logits must be floating and labels integer, got {logits.dtype}{list(logits.shape)} and "
            f"{labels.dtype}{list(labels.shape)}"
        )
    if mask is not None and (mask.shape != labels.shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask must be bool of the labels' shape {labels.shape}, got {mask.dtype}{list(mask.shape)}; "
            "compare it with zero to make it bool"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    num_words = logits.shape[-1]
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mask is not None:
        x = jnp.where(mask[..., None], x, 0.0)
        labels = jnp.where(mask, labels, 0)
    lse = jax.nn.logsumexp(x, axis=-1)
    known = (labels >= 0) & (labels < num_words)
    picked = jnp.take_along_axis(x, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    losses = lse - jnp.where(known, picked, jnp.nan)
    if label_smoothing:
        losses += label_smoothing * (picked - x.mean(axis=-1))
    if z_loss:
        losses += z_loss * lse**2
    if mask is None:
        return losses.sum() / max(losses.size, 1)
    return jnp.where(mask, losses, 0.0).sum() / jnp.maximum(mask.sum(), 1)
