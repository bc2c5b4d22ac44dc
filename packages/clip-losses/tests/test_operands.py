import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from clip_losses import sharded_sigmoid_loss, sharded_softmax_loss, sigmoid_loss, softmax_loss

A = jnp.ones((4, 3))


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((A, jnp.ones((5, 3)), 1.0), {}, ["[4, 3]", "[5, 3]"]),
        ((A, jnp.ones((4, 2)), 1.0), {}, ["[4, 3]", "[4, 2]"]),
        ((A, jnp.ones((4, 3, 1)), 1.0), {}, ["[4, 3, 1]"]),
        ((A, A.astype(jnp.bfloat16), 1.0), {}, ["float32", "bfloat16"]),
        ((A.astype(int), A.astype(int), 1.0), {}, ["int32[4, 3]"]),
        ((A, A, jnp.ones(1)), {}, ["logit_scale", "[1]"]),
        ((A, A, 1.0), {"image_ids": jnp.arange(3)}, ["image_ids", "int32[3]", "integer[4]"]),
        ((A, A, 1.0), {"text_ids": jnp.ones(4)}, ["text_ids", "float32[4]"]),
        ((A, A, 1.0), {"mask": jnp.ones(4)}, ["mask", "bool[4]", "float32[4]"]),
        ((A, A, 1.0), {"impl": "fast"}, ["impl", "dense", "fast"]),
        ((A, A, 1.0), {"comm": "tree"}, ["comm", "ring", "tree"]),
        ((A, A, 1.0), {"reduction": "none"}, ["reduction", "none"]),
        ((A, A, 1.0), {"tile": 0}, ["tile", "0"]),
        ((A, A, 1.0), {"tile": (1, 2, 3)}, ["tile", "(1, 2, 3)"]),
        ((A, A, 1.0), {"tile": 2, "impl": "dense"}, ["tile", "dense"]),
        ((A, A, 1.0), {"axis_name": "data"}, ["axis_name", "data", "shard_map"]),
    ],
)
def test_refusals_say_what_arrived(loss, arguments, options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        loss(*arguments, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("loss", [sharded_sigmoid_loss, sharded_softmax_loss])
def test_refusals_of_a_mesh(loss):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"'data': 2.*got 'fsdp'"):
        loss(A, A, 1.0, mesh=mesh, axis_name="fsdp")
    with pytest.raises(ValueError, match="b = 3 rows must divide over the 2 devices"):
        loss(A[:3], A[:3], 1.0, mesh=mesh)
    with pytest.raises(ValueError, match=r"got \(\)"):
        loss(A, A, 1.0, mesh=mesh, axis_name=())


def test_softmax_options_are_checked():
    with pytest.raises(ValueError, match=r"label_smoothing.*got 1"):
        softmax_loss(A, A, 1.0, label_smoothing=1)
    with pytest.raises(ValueError, match=r"direction.*text_to_image.*sideways"):
        softmax_loss(A, A, 1.0, direction="sideways")


def test_importing_it_imports_jax_and_nothing_else():
    program = (
        "import sys, jax, jax.numpy; before = set(sys.modules); import clip_losses\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert new <= {'clip_losses', 'jax'}, new"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
