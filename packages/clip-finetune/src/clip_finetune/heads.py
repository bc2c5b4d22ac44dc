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
