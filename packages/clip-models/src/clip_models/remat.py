"""What the backward pass computes again instead of keeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from clip_models.activations import constraining
from clip_models.config import Remat

# The names that attention and MLP give to the results of their matrix products.
PRODUCTS = ("query", "key", "value", "out", "fc1", "fc2")

_HOST = "pinned_host"


def rematerialize(function: Callable[..., Any], remat: Remat, *, in_scan: bool = True) -> Callable[..., Any]:
    """Wraps a block.

    Args:
        function: any; what it names with ``checkpoint_name`` can be kept.
        remat: as in :class:`clip_models.ComputeConfig`.
        in_scan: whether it is the body of a scan. That is compiled apart: common subexpressions cannot undo the remat,
            and the barrier against them would only cost.

    Returns:
        A function of the same values and gradients.
    """
    names = jax.checkpoint_policies
    match remat:
        case "none":
            if not constraining():
                return function
            # Weights that were brought together to be used are not kept so, but brought together again.
            policy = _all_but_constrained
        case "full":
            policy = names.nothing_saveable
        case "proj":
            policy = names.save_only_these_names("query", "key", "value")
        case "minimal":
            policy = names.save_only_these_names(*PRODUCTS)
        case "offload":
            memories = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
            if _HOST not in memories:
                raise ValueError(
                    f"remat='offload' keeps products in the memory {_HOST!r} of the host, which the backend "
                    f"{jax.default_backend()} does not have ({', '.join(sorted(memories))}): use 'minimal' or 'full'."
                )
            policy = names.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(PRODUCTS),
                offload_src="device",
                offload_dst=_HOST,
            )
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


def _all_but_constrained(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name != "sharding_constraint"
