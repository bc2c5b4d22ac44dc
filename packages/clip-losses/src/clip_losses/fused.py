"""Value and gradients in one sweep, made differentiable: what turns a loss's sweep into a function for ``jax.grad``.

A loss's sweep returns its gradients with its value, so differentiating it only multiplies them by the cotangent and
nothing of size b×b is kept for a backward pass. The rule is a ``custom_jvp``: JAX transposes the product itself, so the
gradients follow its own conventions inside a stranger's ``shard_map`` too, forward mode works, and an argument that
nobody differentiates is known to be constant, which drops its accumulator.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from clip_losses.operands import Operands, Settings

# One entry per differentiable operand: its gradient, or None where it is not wanted.
Grads = tuple[Any, Any, Any, Any]
Wanted = tuple[bool, bool, bool, bool]
# Over an axis, the value is global and the scalars' gradients are this device's share.
Sweep = Callable[[Any, Operands, Wanted], tuple[Array, Grads]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def loss(sweep: Sweep, settings: Settings, operands: Operands) -> Array:
    """The loss as a scalar that can be differentiated."""
    return _run(sweep, settings, (False,) * 4, operands)[0]


def _loss_jvp(
    sweep: Sweep, settings: Settings, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Array, Array]:
    directions: Any = tangents[0][:4]
    wanted = tuple(d is not None and not isinstance(d, SymbolicZero) for d in directions)
    value, grads = _run_whole(sweep, settings, wanted, primals[0])
    tangent = jnp.zeros_like(value)
    for grad, direction in zip(grads, directions, strict=True):
        if grad is not None:
            tangent += jnp.sum(grad * direction.astype(grad.dtype))
    if settings.axis_name is not None and settings.mesh is None:
        tangent = lax.psum(tangent, settings.axis_name)
    return value, tangent


loss.defjvp(_loss_jvp, symbolic_zeros=True)


def loss_and_grads(sweep: Sweep, settings: Settings, operands: Operands) -> tuple[Array, Any]:
    """The loss and the true gradient of the global loss for each differentiable operand, in its own dtype."""
    primals = [x for x in operands[:4] if x is not None]
    value, grads = _run(sweep, settings, (True, True, True, operands.logit_bias is not None), operands)
    whole = []
    for x, grad in zip(primals, (g for g in grads if g is not None), strict=True):
        if settings.axis_name is not None and settings.mesh is None and x.ndim == 0:
            grad = lax.psum(grad, settings.axis_name)
        whole.append(grad.astype(x.dtype))
    return value, tuple(whole)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(sweep: Sweep, settings: Settings, wanted: Wanted, operands: Operands) -> tuple[Array, Grads]:
    """Call the sweep, inside our own ``shard_map`` when the settings hold a mesh."""
    dtype = operands.image_embeds.dtype
    if operands.image_embeds.shape[0] == 0:
        zeros = [jnp.zeros_like(x) if x is not None and w else None for x, w in zip(operands, wanted, strict=False)]
        return jnp.zeros((), jnp.promote_types(dtype, jnp.float32)), (zeros[0], zeros[1], zeros[2], zeros[3])
    if settings.mesh is None:
        return sweep(settings, _uniform(operands, settings.axis_name), wanted)

    def local(operands: Operands) -> tuple[Array, Grads]:
        value, grads = sweep(settings, _uniform(operands, settings.axis_name), wanted)
        scale, bias = (None if g is None else lax.psum(g, settings.axis_name) for g in grads[2:])
        return value, (grads[0], grads[1], scale, bias)

    rows, whole = PartitionSpec(settings.axis_name), PartitionSpec()
    specs: Any = (rows, rows, whole, whole, rows, rows, rows)
    over_mesh = jax.shard_map(
        local, mesh=settings.mesh, in_specs=(Operands(*specs),), out_specs=(whole, (rows, rows, whole, whole))
    )
    return over_mesh(operands)


def _uniform(operands: Operands, axis_name: Any) -> Operands:
    """Make every operand vary over the same mesh axes, as the carry of a loop must inside ``shard_map``.

    Selecting between an array and itself takes on the predicate's axes and compiles to nothing.
    """
    witness = sum(x.ravel()[:0].sum().astype(jnp.int32) for x in jax.tree.leaves(operands))
    if axis_name is not None:
        witness += lax.axis_index(axis_name) * 0
    return jax.tree.map(lambda x: lax.select(witness == 0, x, x), operands)


# JAX traces the rule above while it separates what depends on tangents from what does not, and would take the loops
# apart on the way: their slices of the embeddings come out as a stacked copy of [b, e]. A custom rule's function is
# left whole.
_run_whole = jax.custom_jvp(_run, nondiff_argnums=(0, 1, 2))
_run_whole.defjvp(
    lambda sweep, settings, wanted, primals, tangents: jax.jvp(
        functools.partial(_run, sweep, settings, wanted), primals, tangents
    )
)
