"""The arithmetic of a program, counted from its jaxpr: what the algorithm asks for, whatever a compiler makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """The FLOPs of matrix products and convolutions of a call, over all devices; loops count as often as they run.

    Args:
        function: any that jax can trace.
        *args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Two for each multiplication and addition. Of the branches of a condition the largest counts; of a loop whose
        length is known only when it runs, one turn.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)
        >>> count_flops(lambda x: jax.lax.scan(lambda c, w: (c @ w, None), jnp.eye(8), x)[0], x)  # 4 · 2 · 8³
        4096.0
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    params: dict[str, Any] = equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    match equation.primitive.name:
        case "dot_general":
            (contracting, _), _ = params["dimension_numbers"]
            return 2.0 * outputs[0].size * math.prod(inputs[0].shape[i] for i in contracting)
        case "conv_general_dilated":
            kernel, numbers = inputs[1], params["dimension_numbers"]
            features = kernel.shape[numbers.rhs_spec[0]]
            groups = params["batch_group_count"]
            return 2.0 * outputs[0].size * kernel.size / features / groups
        case "scan":
            return params["length"] * _flops(params["jaxpr"].jaxpr)
        case "cond":
            return max(_flops(branch.jaxpr) for branch in params["branches"])
        case "shard_map":
            # Inside, shapes are those of one device.
            mesh, manual = params["mesh"], next(params[key] for key in params if key.endswith("manual_axes"))
            return math.prod(mesh.shape[axis] for axis in manual) * _flops(params["jaxpr"])
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid) * _flops(params["jaxpr"])
    return sum(_flops(inner) for inner in _jaxprs_in(params))


def _jaxprs_in(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found
