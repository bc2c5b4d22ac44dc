"""Counting what a program does: from its jaxpr, from its optimized text, and of programs recorded from the TPU's."""

import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clip_sharding import CHIPS, DoesNotFitError, MeshConfig, count_flops, find_topology, make_mesh, plan
from clip_sharding.hlo import Array, parse_hlo
from clip_sharding.plan import _refusal
from clip_sharding.roofline import roofline
from clip_sharding.work import count_work

RECORDED = pathlib.Path(__file__).parent / "recorded"


@pytest.fixture(scope="module")
def eight():
    return find_topology("cpu:8")


def test_flops_of_a_jaxpr_count_loops_devices_and_what_is_computed_again(eight):
    mesh = make_mesh(MeshConfig(), eight.devices)
    x, w = jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
    product = 2 * 16 * 8 * 8

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    assert count_flops(layers, x, w) == 3 * product
    assert count_flops(jax.grad(layers, (0, 1)), x, w) == 9 * product
    again = jax.checkpoint(layers)
    assert count_flops(jax.grad(again, (0, 1)), x, w) == 12 * product
    rows = PartitionSpec("data")
    split = jax.shard_map(lambda x: x @ jnp.ones((8, 8)), mesh=mesh, in_specs=rows, out_specs=rows)
    assert count_flops(split, x) == product
    assert count_flops(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x.T, lambda x: x[:, :1] * x[:, 0], x), x) == (
        2 * 16 * 16 * 8
    )
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    patches = lambda i, k: jax.lax.conv_general_dilated(i, k, (4, 4), "VALID", dimension_numbers=numbers)  # noqa: E731
    assert count_flops(patches, image, kernel) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)


def test_the_program_of_eight_devices_is_counted_with_its_loops_and_collectives(eight):
    mesh = make_mesh(MeshConfig(), eight.devices)
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=whole)

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0].mean()

    found = plan(
        jax.jit(jax.grad(loss), out_shardings=whole), w, x, topology=eight, groups={"parameters": w, "batch": x}
    )
    assert found.flops == count_flops(jax.grad(loss), w, x) / 8
    assert found.uncounted_loops == found.library_calls == 0
    assert 0.5 < found.flops_check <= 1  # so small a program has as much other arithmetic
    assert found.memory["parameters"] == 5 * 32 * 32 * 4
    assert found.memory["batch"] == 8 * 32 * 4
    assert found.memory["peak"] >= found.memory["parameters"] + found.memory["batch"]
    # What the way there keeps for the way back: the input of each layer, and its cosine.
    assert found.memory["activations"] in (5 * 8 * 32 * 4, 2 * 5 * 8 * 32 * 4)
    gradients = 5 * 32 * 32 * 4
    assert found.sent["all-reduce"] == pytest.approx(2 * 7 / 8 * gradients, rel=0.01)
    assert found.roofline is None


def test_a_recorded_tpu_program_is_counted_as_the_compiler_counts_it():
    # jax.value_and_grad of three scanned layers of 256 × 256, 512 bfloat16 rows on each of 4 devices of v5e:2x2.
    program = count_work(parse_hlo((RECORDED / "layers_v5e_2x2.txt").read_text()))
    product = 2 * 512 * 256 * 256
    assert program.flops == 9 * product
    assert program.flops_counted_once == 201326592  # of the compiler's 204144640, which count other arithmetic too
    assert program.sent == {"all-reduce": pytest.approx(2 * 3 / 4 * 3 * 256 * 256 * 2, rel=0.01)}
    assert program.uncounted_loops == 0
    assert 3 * 256 * 256 * 2 < program.bytes < 3e6  # the activations never leave the chip
    v5e = roofline(program, CHIPS["v5e"])
    assert v5e.compute == program.flops / 197e12
    assert v5e.bound <= v5e.in_order <= v5e.compute + v5e.memory + v5e.network


GEMM = (
    '"gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}'
)


def attention_config(*products, mask="NO_MASK"):
    dims = '"lhs_contracting_dimensions":["3"],"rhs_contracting_dimensions":["3"],"lhs_batch_dimensions":["0","1"]'
    numbers = ",".join(f'"{name}_dot_dimension_numbers":{{{dims}}}' for name in products)
    return (
        '"cudnn_fmha_backend_config":{"algorithm":{"algo_id":"0"},"intermediate_tensor_shape":{"element_type":"BF16",'
        f'"dimensions":["8","12","196","196"],"tuple_shapes":[]}},{numbers},"mask_type":"{mask}"}}'
    )


HEADS, WEIGHTS = "bf16[8,12,196,64]", 8 * 12 * 196 * 196
FORWARD = ("bmm1", "bmm2")
BACKWARD = ("bmm1_grad_gemm1", "bmm1_grad_gemm2", "bmm2_grad_gemm1", "bmm2_grad_gemm2")
LIBRARY_CALLS = {
    "cublas": (
        "(bf16[512,1024], s8[33554432])",
        ("bf16[512,256]", "bf16[256,1024]"),
        f'custom_call_target="__cublas$lt$matmul", backend_config={{"operation_queue_id":"0",{GEMM}}}',
        2 * 512 * 256 * 1024,
    ),
    "attention": (
        f"({HEADS}, u8[0])",
        (HEADS,) * 3,
        f'custom_call_target="__cudnn$fmhaSoftmax", backend_config={{{attention_config(*FORWARD)}}}',
        2 * 2 * WEIGHTS * 64,
    ),
    "attention, causal": (
        f"({HEADS}, u8[0])",
        (HEADS,) * 3,
        f'custom_call_target="__cudnn$fmhaSoftmax", backend_config={{{attention_config(*FORWARD, mask="CAUSAL")}}}',
        2 * WEIGHTS * 64,
    ),
    "attention, backward": (
        f"({HEADS}, {HEADS}, {HEADS}, u8[4096])",
        (HEADS,) * 3,
        f'custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={{{attention_config(*BACKWARD)}}}',
        5 * 2 * WEIGHTS * 64,
    ),
    "convolution": (
        "(bf16[8,14,14,96], u8[128])",
        ("bf16[8,224,224,3]", "bf16[16,16,3,96]"),
        'window={size=16x16 stride=16x16}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"',
        2 * 8 * 14 * 14 * 96 * 16 * 16 * 3,
    ),
    "convolution, backward": (
        "(bf16[16,16,3,96], u8[128])",
        ("bf16[8,224,224,3]", "bf16[8,14,14,96]"),
        'window={size=16x16 stride=16x16}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"',
        2 * 8 * 14 * 14 * 96 * 16 * 16 * 3,
    ),
}


@pytest.mark.parametrize("call", LIBRARY_CALLS)
def test_what_libraries_of_gpus_do_is_counted_and_their_workspace_is_no_traffic(call):
    made, given, attributes, flops = LIBRARY_CALLS[call]
    lines = [f"  %p{i} = {array} parameter({i})" for i, array in enumerate(given)]
    operands = ", ".join(f"%p{i}" for i in range(len(given)))
    program = count_work(
        parse_hlo(
            "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n"
            + "\n".join([*lines, f"  ROOT %call = {made} custom-call({operands}), {attributes}"])
            + "\n}\n"
        )
    )
    assert program.flops == flops
    assert program.library_calls == 0
    arrays = re.findall(r"bf16\[([\d,]+)\]", made + " ".join(given))
    assert program.bytes == sum(2 * math.prod(map(int, dims.split(","))) for dims in arrays)


def test_a_library_that_does_not_tell_is_counted_as_such():
    call = 'custom-call(%a), custom_call_target="tpu_custom_call"'
    program = count_work(
        parse_hlo(
            "HloModule m\n\nENTRY %main (a: f32[2]) -> f32[2] {\n  %a = f32[2] parameter(0)\n"
            f"  ROOT %b = f32[2] {call}\n}}\n"
        )
    )
    assert (program.flops, program.library_calls) == (0, 1)


def test_a_kernels_notes_end_no_computation():
    notes = 'custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n"q": 1\n}}'
    module = parse_hlo(
        "HloModule m\n\nENTRY %main (a: f32[2]) -> f32[2] {\n  %a = f32[2]{0} parameter(0)\n"
        f"  %b = f32[2]{{0}} {notes}\n"
        "  ROOT %c = f32[2]{0} copy(%b)\n}\n"
    )
    assert module.computations["main"].root.name == "c"


def test_a_transfer_laid_over_several_fusions_counts_once():
    # One layer of So400m under fsdp on v5e-256: a kernel, of which each of 16 devices has 72 of 1,152 rows, is gathered
    # while a matrix product runs that keeps its result for the way back.
    program = count_work(parse_hlo((RECORDED / "gather_across_fusions_v5e_256.txt").read_text()))
    assert program.sent == {"all-gather": 15 * 72 * 1152 * 2}
    assert program.flops == 2 * 128 * 256 * 1152 * 1152
    result = 128 * 256 * 1152 * 2
    assert program.bytes == 2 * result  # written once, and once more among what is kept; the gather stays on the chip


BETWEEN_SLICES = """HloModule jit_f, is_scheduled=true, num_partitions=8

ENTRY %main (param: bf16[1024,1024]) -> bf16[128,1024] {
  %param = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %reduce-scatter.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} reduce-scatter(%param), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %after-all.1 = token[] after-all()
  %send.1 = (bf16[128,1024]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%reduce-scatter.1, %after-all.1), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target=TARGET,_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
  %recv.1 = (bf16[128,1024]{1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.1), channel_id=3, is_host_transfer=true
  %recv-done.1 = (bf16[128,1024]{1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.1), channel_id=3, is_host_transfer=true
  ROOT %get-tuple-element.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%recv-done.1), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(("target", "slices"), [('"{1,2,3,4}x{0:7}"', 4), ("{{100000,200000},{100001,200001}}", 2)])
def test_what_crosses_to_other_slices_is_told_apart(target, slices):
    program = count_work(parse_hlo(BETWEEN_SLICES.replace("TARGET", target)))
    whole, part = 1024 * 1024 * 2, 128 * 1024 * 2
    assert program.sent == {"reduce-scatter": 7 / 8 * whole}
    assert program.sent_between_slices == {"all-reduce": 2 * (slices - 1) / slices * part}
    assert program.bytes == whole + part + part + part  # reduced and written; sent and received
    line = roofline(program, CHIPS["v5e"])
    assert line.slices == program.sent_between_slices["all-reduce"] / (25e9 / 8)
    assert (line.limit, line.bound) == ("slices", line.slices)
    assert roofline(program, CHIPS["v4"]) is None  # what nobody published


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (Array("bf16", (256, 12, 196, 196), "2,3,1,0:T(8,128)(2,1)"), 256 * 12 * 200 * 256 * 2),
        (Array("f32", (768,), "0:T(1024)"), 1024 * 4),
        (Array("pred", (), ""), 1),
    ],
)
def test_tiles_are_padded(array, size):
    assert array.padded_bytes == size


def test_memory_on_the_chip_is_no_hbm():
    assert Array("f32", (8, 128), "1,0:T(8,128)S(1)").on_chip
    assert not Array("f32", (8, 128), "1,0:T(8,128)").on_chip


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm. Exceeded by 3.75G", 19.5, 15.75),
        ("the total memory required for HLO temporaries (304.13G) exceeds available HBM (15.75G).", 304.13, 15.75),
    ],
)
def test_a_refusal_says_by_how_much(message, needed, available):
    refused = _refusal(RuntimeError(message))
    assert isinstance(refused, DoesNotFitError)
    np.testing.assert_allclose([refused.needed / 2**30, refused.available / 2**30], [needed, available])
    assert f"{needed - available:.2f} GiB too many" in str(refused)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x:4x4", "Did you mean 'v5p'"),
        ("v5e", "say how large"),
        ("v5e-48", "power of two"),
        ("v5e:4x4x2x2", "v5e:16x16x2 are two"),
        ("cpu:99", "host_platform_device_count=99"),
        ("cpu:2x4", "such as cpu:8; got 'cpu:2x4'"),
        ("cpu:0", "such as cpu:8; got 'cpu:0'"),
        ("h100", "on a machine that has one, as 'gpu'; got 'h100'"),
        ("gpu", "sees none"),
    ],
)
def test_a_topology_that_is_none_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        find_topology(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is here")
def test_without_the_tpu_compiler_the_extra_is_named():
    with pytest.raises(ImportError, match=r"clip-sharding\[tpu\]"):
        find_topology("v5e-256")
