"""Inverse p-th roots of many symmetric positive semidefinite matrices at once."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

RootMethod = Literal["newton", "eigh"]

_MAX_ITERATIONS = 100
_MAX_TRIES = 6
_TOLERANCE = 1e-6
# The error may rise for an iteration before it falls; beyond this ratio the iteration has broken down.
_MAX_ERROR_RATIO = 1.2
_RETRY_ABOVE = 0.05

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def inverse_roots(
    matrices: jax.Array, p: int, *, epsilon: float = 1e-6, method: RootMethod = "newton"
) -> tuple[jax.Array, jax.Array]:
    """`(A + ε λ I)^(-1/p)` of each matrix A, where λ is its largest eigenvalue.

    Args:
        matrices: float32 `[n, d, d]`, symmetric positive semidefinite.
        p: the root, at least 1.
        epsilon: ε, the ridge relative to λ.
        method: `newton`, coupled Newton iterations, all of them products; where they break down, now and then on a
            matrix that is not hard, they start again with ten times the ridge, as published. `eigh`, an
            eigendecomposition, is faster on CPUs for d above a hundred. Of matrices that lack rank it is a few times
            less exact: float32 rounds their smallest eigenvalues by a tenth of the ridge.

    Returns:
        The roots, float32 `[n, d, d]`, and how far each is from one, float32 `[n]`: NaN where it could not be taken.

    References:
        Higham, Functions of Matrices, §7.3, eq. 7.18, for the iteration.
        Anil et al., Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018, for the ridge.
    """
    one = {"newton": _newton, "eigh": _eigh}[method]

    def root(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Gradients may be tiny: squares of squares of them would leave float32's range.
        size = jnp.max(jnp.abs(jnp.diagonal(matrix)))
        result, error = one(matrix / size, p, epsilon)
        return result * size ** (-1 / p), error

    return jax.vmap(root)(matrices)


def _eigh(matrix: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    ridge = epsilon * values[-1]
    # Rounding makes eigenvalues that are zero slightly negative.
    scaled = vectors * jnp.maximum(values + ridge, ridge) ** (-1 / (2 * p))
    result = _matmul(scaled, scaled.T)
    return result, jnp.where(jnp.all(jnp.isfinite(result)), 0.0, jnp.nan)


class _Iterate(NamedTuple):
    iteration: jax.Array
    m: jax.Array
    h: jax.Array
    last_h: jax.Array
    error: jax.Array
    ratio: jax.Array


def _newton(matrix: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Iterate M ← (((p+1)I − M)/p)^p M and H ← H ((p+1)I − M)/p until M is I; a larger ridge where that fails."""
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    ridge = epsilon * _largest_eigenvalue(matrix)

    def goes_on(state: _Iterate) -> jax.Array:
        return (state.iteration < _MAX_ITERATIONS) & (state.error > _TOLERANCE) & (state.ratio < _MAX_ERROR_RATIO)

    def iterate(state: _Iterate) -> _Iterate:
        factor = ((p + 1) * identity - state.m) / p
        m, h = _matmul(_power(factor, p), state.m), _matmul(state.h, factor)
        error = jnp.max(jnp.abs(m - identity))
        return _Iterate(state.iteration + 1, m, h, state.h, error, error / state.error)

    def attempt(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        tries, _, _ = state
        damped = matrix + ridge * 10.0**tries * identity
        z = (1 + p) / (2 * jnp.linalg.norm(damped))
        m, h = damped * z, identity * z ** (1 / p)
        first = _Iterate(jnp.zeros((), jnp.int32), m, h, h, jnp.max(jnp.abs(m - identity)), jnp.ones(()))
        last = jax.lax.while_loop(goes_on, iterate, first)
        return tries + 1, jnp.where(last.ratio < _MAX_ERROR_RATIO, last.h, last.last_h), last.error

    def fails(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        tries, _, error = state
        return (tries < _MAX_TRIES) & (error > _RETRY_ABOVE)

    unstarted = jnp.zeros((), jnp.int32), identity, jnp.full((), jnp.inf)
    _, result, error = jax.lax.while_loop(fails, attempt, unstarted)
    return result, error


def _largest_eigenvalue(matrix: jax.Array) -> jax.Array:
    def goes_on(state: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        iteration, _, value, change = state
        return (iteration < _MAX_ITERATIONS) & (change > _TOLERANCE * value)

    def iterate(
        state: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        iteration, vector, value, _ = state
        product = _matmul(matrix, vector / jnp.linalg.norm(vector))
        norm = jnp.linalg.norm(product)
        return iteration + 1, product, norm, jnp.abs(norm - value)

    # Any vector that is orthogonal to no eigenvector; a fixed one, so that the same matrix has the same root.
    start = jnp.sin(1.0 + jnp.arange(len(matrix), dtype=matrix.dtype) ** 2)
    zero = jnp.zeros((), matrix.dtype)
    return jax.lax.while_loop(goes_on, iterate, (jnp.zeros((), jnp.int32), start, zero, zero + jnp.inf))[2]


def _power(matrix: jax.Array, p: int) -> jax.Array:
    """The matrix to the p-th, p ≥ 1, by squaring."""
    if p == 1:
        return matrix
    half = _power(_matmul(matrix, matrix), p // 2)
    return _matmul(matrix, half) if p % 2 else half
