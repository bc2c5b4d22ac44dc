"""What the TPU compiler itself says of small programs; run where it is: `uv run --group tpu pytest …/test_tpu.py`."""

import os

import pytest

pytest.importorskip("libtpu")
# Said before the compiler is loaded; it loads once for all tests, and beside other processes that have it.
os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from clip_sharding import DoesNotFitError, MeshConfig, find_topology, make_mesh, plan


@pytest.mark.parametrize(
    ("name", "chips", "devices", "slices", "end"),
    [
        ("v5e-256", 256, 256, 1, [15, 15, 0]),
        ("v4-128", 64, 64, 1, [3, 3, 3]),
        ("v4-8", 4, 4, 1, [1, 1, 0]),
        ("v5p-16", 8, 8, 1, [1, 1, 1]),
        ("tpu7x:2x2x1", 4, 8, 1, [1, 1, 0]),
        ("v5e-16x2", 32, 32, 2, [3, 3, 0]),
        ("v5p:2x2x2x3", 24, 24, 3, [1, 1, 1]),
    ],
)
def test_slices_have_the_cloud_s_names(name, chips, devices, slices, end):
    found = find_topology(name)
    assert (found.num_chips, len(found.devices), found.num_slices) == (chips, devices, slices)
    assert len({getattr(device, "slice_index", 0) for device in found.devices}) == slices
    assert max(list(device.coords) for device in found.devices) == end


def test_a_program_is_counted_as_the_compiler_lays_it_out():
    topology = find_topology("v5e:2x2")
    mesh = make_mesh(MeshConfig(), topology.devices)
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    w = jax.ShapeDtypeStruct((3, 256, 256), jnp.bfloat16, sharding=whole)
    x = jax.ShapeDtypeStruct((2048, 256), jnp.bfloat16, sharding=rows)

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].astype(jnp.float32).sum()

    step = jax.jit(jax.value_and_grad(loss), out_shardings=whole)
    made = plan(step, w, x, topology=topology, groups={"parameters": w, "batch": x})
    assert made.flops == 9 * 2 * 512 * 256 * 256
    assert 0.9 < made.flops_check < 1
    assert made.uncounted_loops == made.library_calls == 0
    weights = 3 * 256 * 256 * 2
    assert made.sent == {"all-reduce": pytest.approx(2 * 3 / 4 * weights, rel=0.01)}
    assert (made.memory["parameters"], made.memory["batch"]) == (weights, 512 * 256 * 2)
    assert weights < made.memory["peak"] < made.available == 16 * 2**30
    assert weights < made.bytes < 3e6  # the activations never leave the chip
    assert 0 < made.roofline.bound <= made.roofline.in_order


@pytest.mark.parametrize(
    ("columns", "step", "needed"),
    [(2**18, lambda x: x.sum(), 32), (2**16, lambda x: (x, x @ jnp.ones((2**16, 2**15), x.dtype)), 8 + 8 + 4)],
    ids=["an argument", "arguments and results"],
)
def test_what_does_not_fit_is_refused_with_what_it_needs(columns, step, needed):
    topology = find_topology("v5e:2x2")
    rows = NamedSharding(make_mesh(MeshConfig(), topology.devices), PartitionSpec("data"))
    with pytest.raises(DoesNotFitError) as refused:
        plan(jax.jit(step), jax.ShapeDtypeStruct((2**18, columns), jnp.bfloat16, sharding=rows), topology=topology)
    assert refused.value.needed == pytest.approx(needed * 2**30, rel=0.01)
    assert 15 * 2**30 < refused.value.available <= 16 * 2**30
