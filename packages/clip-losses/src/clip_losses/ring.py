"""How the blocks of a batch split over devices meet: every device works on its own rows against everybody's columns.

It moves arrays and knows no formula. Either the columns travel around a ring while what is summed about them follows,
or they are gathered once and the sums are scattered back.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from clip_losses.operands import AxisName, Comm

# (resident, columns, position of the first column) -> (resident, what this block adds to the columns' sums)
Work = Callable[[Any, Any, Array | int], tuple[Any, Any]]


def over_blocks(
    work: Work,
    merge: Callable[[Any, Any], Any] | None,
    resident: Any,
    columns: Any,
    *,
    axis_name: AxisName | None,
    comm: Comm,
) -> tuple[Any, Any]:
    """Run ``work`` of this device's rows against every device's columns.

    Args:
        work: The work of one block, or of all of them at once after an all-gather.
        merge: Joins two contributions to the same columns' sums; None adds them.
        resident: What stays on the device and is updated by each block.
        columns: A pytree of this device's ``[b, ...]`` columns.
        axis_name: The axis or axes the devices lie along; None for a single device.
        comm: ``"ring"``: ``n − 1`` sends of the columns and ``n`` of the sums, each issued before the work it hides
            behind. ``"all_gather"``: one gather and one scatter, with memory for everybody's columns.

    Returns:
        The final resident, and the sums about this device's own columns.
    """
    num_devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if axis_name is None or num_devices == 1:
        return work(resident, columns, 0)
    if comm == "all_gather":
        gathered = jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), columns)
        resident, sums = work(resident, gathered, 0)
        return resident, _scatter(sums, merge, axis_name, num_devices)

    block = jax.tree.leaves(columns)[0].shape[0]
    own = lax.axis_index(axis_name)
    to_previous = [(device, (device - 1) % num_devices) for device in range(num_devices)]
    combine = merge or _add

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, axis_name, to_previous), tree)

    def hop(k: Array | int, resident: Any, columns: Any, sums: Any) -> tuple[Any, Any]:
        received = send(sums)
        resident, contribution = work(resident, columns, (own + k) % num_devices * block)
        return resident, combine(received, contribution)

    def middle(k: Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        resident, columns, sums = carry
        following = send(columns)
        return _swap(hop(k, resident, columns, sums), following)

    # The first and last hops stand apart, so that nothing is sent that nobody uses.
    following = send(columns)
    resident, sums = work(resident, columns, own * block)
    carry = (resident, following, sums)
    if num_devices > 2:
        carry = lax.fori_loop(1, num_devices - 1, middle, carry)
    resident, sums = hop(num_devices - 1, *carry)
    return resident, send(sums)


def first_row(block: int, axis_name: AxisName | None) -> Array | int:
    """The position of this device's first row in the global batch."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * block


def _swap(outcome: tuple[Any, Any], following: Any) -> tuple[Any, Any, Any]:
    resident, sums = outcome
    return resident, following, sums


def _add(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)


def _scatter(sums: Any, merge: Callable[[Any, Any], Any] | None, axis_name: AxisName, num_devices: int) -> Any:
    """Bring every device's sums about my columns to me, joined."""
    if merge is None:
        return jax.tree.map(lambda x: lax.psum_scatter(x, axis_name, tiled=True), sums)
    split = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), sums)
    received = jax.tree.map(lambda x: lax.all_to_all(x, axis_name, 0, 0), split)
    joined = jax.tree.map(lambda x: x[0], received)
    return lax.fori_loop(
        1, num_devices, lambda i, joined: merge(joined, jax.tree.map(lambda x: x[i], received)), joined
    )
