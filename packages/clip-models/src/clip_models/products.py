"""Matrix products of the towers, in the form in which a device is fast at them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from clip_models.platform import platform


def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes ``jnp.einsum(spec, a, b)`` in the dtype of the operands, accumulated in float32.

    XLA's CPU backend has bfloat16 products at twice the rate of float32's, where the processor has the instructions,
    but takes them for float32 results alone: operands of a product that is to be bfloat16, forward or backward, it
    converts to float32. There the products are asked for in float32, and rounded.

    Args:
        spec: as of ``einsum``, of two operands: each index is in two of the three.
        a: floating, of the dtype of ``b``.
        b: floating.

    Returns:
        The product.
    """
    if a.dtype == jnp.bfloat16 and platform() == "cpu":
        return _in_float32(spec, a, b)
    return jnp.einsum(spec, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_float32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    of_a, rest = spec.split(",")
    of_product = rest.partition("->")[2]
    # What is summed over comes last in a: in other layouts products are slower than the copy.
    ordered = "".join(sorted(of_a, key=lambda index: index not in of_product))
    if ordered != of_a:
        a = jax.lax.optimization_barrier(jnp.einsum(f"{of_a}->{ordered}", a))
    return jnp.einsum(f"{ordered},{rest}", a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def _forward(spec: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _in_float32(spec, a, b), (a, b)


def _backward(spec: str, operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    of_a, rest = spec.split(",")
    of_b, of_product = rest.split("->")
    a, b = operands
    return (
        _in_float32(f"{of_product},{of_b}->{of_a}", gradient, b),
        _in_float32(f"{of_a},{of_product}->{of_b}", a, gradient),
    )


_in_float32.defvjp(_forward, _backward)
