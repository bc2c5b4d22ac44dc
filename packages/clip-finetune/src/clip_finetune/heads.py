"""What is put on top of a tower: parameters as plain dicts, and a function from features to logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """Logits as an affine function of features.

    Attributes:
        num_classes: c.
        width: d, of the features.

    Example:
        >>> head = LinearHead(num_classes=3, width=2)
        >>> params = head.init(jax.random.key(0))
        >>> head.apply(params, jnp.ones((4, 2))).shape
        (4, 3)
    """

    num_classes: int
    width: int

    def init(self, key: jax.Array) -> dict[str, Any]:
        """First parameters: a small random `kernel` float32 `[d, c]` and a zero `bias` float32 `[c]`."""
        kernel = 0.01 * jax.random.normal(key, (self.width, self.num_classes), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros(self.num_classes, jnp.float32)}

    def apply(self, params: dict[str, Any], features: jax.Array) -> jax.Array:
        """Logits float32 `[b, c]` of features float `[b, d]`."""
        return features.astype(jnp.float32) @ params["kernel"] + params["bias"]


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """Logits of what learned queries, one for each attention head, find among a tower's last vectors.

    Attributes:
        num_classes: c.
        width: d, of the vectors.
        num_heads: that look, each at its share of the width.

    Example:
        >>> head = AttentionHead(num_classes=3, width=8, num_heads=2)
        >>> head.apply(head.init(jax.random.key(0)), jnp.ones((4, 5, 8))).shape
        (4, 3)

    References:
        Yu et al., CoCa, arXiv 2205.01917, §3.2: attentional pooling with the tower frozen.
    """

    num_classes: int
    width: int
    num_heads: int

    def init(self, key: jax.Array) -> dict[str, Any]:
        """First parameters: `query` `[heads, d/heads]`, `key` and `value` `[d, d]`, and those of a `LinearHead`."""
        query_key, key_key, value_key, head_key = jax.random.split(key, 4)
        std, size = self.width**-0.5, self.width // self.num_heads
        return {
            "query": jax.random.normal(query_key, (self.num_heads, size), jnp.float32),
            "key": std * jax.random.normal(key_key, (self.width, self.width), jnp.float32),
            "value": std * jax.random.normal(value_key, (self.width, self.width), jnp.float32),
            **LinearHead(self.num_classes, self.width).init(head_key),
        }

    def apply(self, params: dict[str, Any], hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits float32 `[b, c]`.

        Args:
            params: from `init`, or trained.
            hidden: the last vectors, `[b, p, d]`; they are brought to mean 0 and deviation 1 first.
            mask: `[b, p]`, 0 at vectors that are padding.
        """
        x = jax.nn.standardize(hidden.astype(jnp.float32), axis=-1, epsilon=1e-6)
        num, length, width = x.shape
        size = width // self.num_heads
        keys = (x @ params["key"]).reshape(num, length, self.num_heads, size)
        values = (x @ params["value"]).reshape(num, length, self.num_heads, size)
        scores = jnp.einsum("bphs,hs->bhp", keys, params["query"]) * size**-0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, :] > 0, scores, -jnp.inf)
        pooled = jnp.einsum("bhp,bphs->bhs", jax.nn.softmax(scores, axis=-1), values).reshape(num, width)
        return pooled @ params["kernel"] + params["bias"]
