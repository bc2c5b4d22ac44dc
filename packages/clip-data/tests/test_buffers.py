import gc

import numpy as np

from clip_data.buffers import Buffers, SharedMemory


def test_memory_is_used_again_only_when_no_view_of_it_is_left():
    buffers = Buffers(64, num_kept=2)
    array = buffers.take()
    view = array.view("i4").reshape(4, 4)[1:]
    view[:] = 7
    del array
    other = buffers.take()
    other[:] = 0
    assert (view == 7).all()
    address = view.ctypes.data - 16
    del view
    assert buffers.take().ctypes.data == address


def test_shared_slots_come_back_and_outlive_their_owner():
    memory = SharedMemory(4096, 2)
    slots = [memory.take() for _ in range(2)]
    assert memory.num_free == 0
    assert {slot for slot, _ in slots} == {0, 1}
    array = slots.pop()[1]
    array[:] = 5
    slots.clear()
    assert memory.num_free == 1
    del memory
    gc.collect()
    assert np.all(array == 5)
