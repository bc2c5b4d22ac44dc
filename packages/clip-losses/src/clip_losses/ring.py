"""How the blocks of a batch split over devices meet: every device works on its own rows against everybody's columns.

It moves arrays and knows no formula. Either the columns travel around a ring together with what is summed about them,
or they are gathered once and the sums are scattered back.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

from clip_losses.operands import AxisName, Comm

# (resident, columns, their sums so far, position of the first column) -> (resident, sums)
Work = Callable[[Any, Any, Any, Array | int], tuple[Any, Any]]


def over_blocks(
    work: Work,
    start: Callable[[Any], Any],
    merge: Callable[[Any, Any], Any] | None,
    resident: Any,
    columns: Any,
    *,
    axis_name: AxisName | None,
    comm: Comm,
    grain: int,
) -> tuple[Any, Any]:
    """Run ``work`` of this device's rows against every device's columns.

    Args:
        work: The work of some columns: of half a block, or of all of them at once after an all-gather.
        start: The sums about columns that nobody has worked on.
        merge: Joins two devices' sums about the same columns after an all-gather; None adds them.
        resident: What stays on the device and is updated by each piece of work.
        columns: A pytree of this device's ``[b, ...]`` columns.
        axis_name: The axis or axes the devices lie along; None for a single device.
        comm: ``"ring"``: the columns travel as two half blocks, each moving while the other is worked on: ``n − 1``
            sends of every column and ``n`` of its sums. ``"all_gather"``: one gather and one scatter, with memory for
            everybody's columns.
        grain: Columns that are worked on together; the halves are a multiple of it where there are enough.

    Returns:
        The final resident, and the sums about this device's own columns.
    """
    num_devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if axis_name is None or num_devices == 1:
        return work(resident, columns, start(columns), 0)
    if comm == "all_gather":
        gathered = jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), columns)
        resident, sums = work(resident, gathered, start(gathered), 0)
        return resident, _scatter(sums, merge, axis_name, num_devices)

    block = jax.tree.leaves(columns)[0].shape[0]
    middle = -(-block // 2)
    if block > grain:
        middle = -(-middle // grain) * grain
    own = lax.axis_index(axis_name)
    to_previous = [(device, (device - 1) % num_devices) for device in range(num_devices)]

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, axis_name, to_previous), tree)

    def half(begin: int, end: int) -> tuple[Any, Any]:
        piece = jax.tree.map(lambda x: x[begin:end], columns)
        return piece, start(piece)

    def work_on(resident: Any, train: tuple[Any, Any], hop: Array | int, begin: int) -> tuple[Any, tuple[Any, Any]]:
        piece, sums = train
        if begin == block:  # a block of one row has no second half
            return resident, train
        resident, sums = work(resident, piece, sums, (own + hop) % num_devices * block + begin)
        return resident, (piece, sums)

    def step(hop: Array | int, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        resident, first, second = carry
        first = send(first)
        resident, second = work_on(resident, second, hop, middle)
        second = send(second)
        resident, first = work_on(resident, first, hop + 1, 0)
        return resident, first, second

    resident, first = work_on(resident, half(0, middle), 0, 0)
    carry = resident, first, half(middle, block)
    resident, (_, first), second = lax.fori_loop(0, num_devices - 1, step, carry)
    first = send(first)
    resident, (_, second) = work_on(resident, second, num_devices - 1, middle)
    return resident, jax.tree.map(lambda x, y: lax.concatenate([x, y], 0), first, send(second))


def first_row(block: int, axis_name: AxisName | None) -> Array | int:
    """The position of this device's first row in the global batch."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * block


def _scatter(sums: Any, merge: Callable[[Any, Any], Any] | None, axis_name: AxisName, num_devices: int) -> Any:
    """Bring every device's sums about my columns to me, joined."""
    if merge is None:
        return jax.tree.map(lambda x: lax.psum_scatter(x, axis_name, tiled=True), sums)
    split = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), sums)
    received = jax.tree.map(lambda x: lax.all_to_all(x, axis_name, 0, 0), split)
    joined = jax.tree.map(lambda x: x[0], received)

    def join(i: Array, joined: Any) -> Any:
        return merge(joined, jax.tree.map(lambda x: x[i], received))

    return lax.fori_loop(1, num_devices, join, joined)
