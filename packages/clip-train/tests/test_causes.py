import errno

import jax.numpy as jnp
import pytest

from clip_train.causes import full_disk, out_of_memory, unreadable
from clip_train.config_file import ConfigError
from clip_train.faults import explained_faults

GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17.00GiB."
# As libtpu tells it when a program is compiled.
TPU = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.51G of \
15.48G hbm. Exceeded hbm capacity by 8.03G.

Total hbm usage >= 24.03G:
    reserved        530.00M
    program          23.51G
  Largest program allocations in hbm:
  1. Size: 3.00G  Operator: op_name="jit(step)/vision/blocks/mlp"  Shape: f32[12,4096,197,768]"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GPU, ["it wanted 17.00GiB"]),
        (TPU, ["it wanted 23.51G", "1. Size: 3.00G", 'op_name="jit(step)/vision/blocks/mlp"', "f32[12,4096,197,768]"]),
    ],
)
def test_out_of_memory_says_what_was_being_allocated(text, told):
    found = out_of_memory(RuntimeError(text))
    for part in told:
        assert part in found
    assert out_of_memory(RuntimeError("INTERNAL: something else")) is None


def test_what_this_backend_says_is_understood():
    told = r"^sharding: .* \(it wanted \d+ bytes\)[^$]*an optimizer that keeps less"
    with pytest.raises(ConfigError, match=told), explained_faults("state"):
        jnp.zeros((10**7, 10**8)).block_until_ready()


def test_a_full_disk_is_told_whatever_came_of_it():
    after = ValueError("cannot close")
    after.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert "make room" in full_disk(after)
    assert "make room" in full_disk(ValueError("Failed to write 40283 bytes to file 7: No space left on device"))
    assert full_disk(OSError(errno.EACCES, "Permission denied")) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (ValueError("UNKNOWN: Failed to open file 'd/0': [OS error: Too many open files]"), True),
        (RuntimeError(GPU), True),
        (MemoryError(), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("OUT_OF_RANGE: Requested byte range [118931, 148681) is not valid"), False),
    ],
)
def test_what_cannot_be_read_now_may_be_whole(error, expected):
    outer = Exception("Encountered error while reading array index")
    outer.__cause__ = error
    assert unreadable(outer) == expected
