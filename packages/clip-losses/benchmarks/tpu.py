"""What the losses need on a TPU pod nobody here owns: memory and collectives, from the TPU compiler on any machine.

    pip install "libtpu==0.0.42.*"
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python packages/clip-losses/benchmarks/tpu.py [--topology v5e:16x16]

Compiles value and gradients of 16,384 bfloat16 pairs per device, as the ring and as the plain form that XLA partitions.
"""

import argparse
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_losses import sharded_sigmoid_loss, sharded_softmax_loss

ROWS, WIDTH = 16384, 512


def dense(image, text, scale, bias):
    """The matrix of logits, of which XLA gives each device its rows."""
    return scale * jnp.matmul(image, text.T, preferred_element_type=jnp.float32) + bias


def dense_sigmoid(image, text, scale, bias):
    """Sum over pairs of −log σ(z·x)."""
    x = dense(image, text, scale, bias)
    positions = jnp.arange(len(image))
    return -jax.nn.log_sigmoid(jnp.where(positions[:, None] == positions, x, -x)).sum() / len(image)


def dense_softmax(image, text, scale, bias):
    """One matrix of logits, normalised both ways."""
    x = dense(image, text, scale, bias)
    return (jax.nn.logsumexp(x, 0) + jax.nn.logsumexp(x, 1) - 2 * jnp.diagonal(x)).mean() / 2


def compile_for(mesh, loss):
    """Returns temp bytes per device and the number of each collective; or the compiler's refusal."""
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    embeds = jax.ShapeDtypeStruct((ROWS * mesh.size, WIDTH), jnp.bfloat16, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)), out_shardings=(whole, (rows, rows, whole, whole)))
    try:
        compiled = step.lower(embeds, embeds, scalar, scalar).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"\(([\d.]+)(\w)\) exceeds available HBM \(([\d.]+)\w\)", str(error))
        if needed is None:
            raise
        return f"{needed[1]} {needed[2]}iB", f"refused: the device has {needed[3]} GiB"
    found = Counter(
        re.findall(
            r"\b(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", compiled.as_text()
        )
    )
    collectives = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
    return f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f} MiB", collectives


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4")
    topology = parser.parse_args().topology
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices), ("data",))
    forms = {
        ("sigmoid", "ring"): lambda *x: sharded_sigmoid_loss(*x, mesh=mesh),
        ("softmax", "ring"): lambda *x: sharded_softmax_loss(*x[:3], mesh=mesh),
        ("sigmoid", "dense"): dense_sigmoid,
        ("softmax", "dense"): dense_softmax,
    }
    print(f"{ROWS:,} bfloat16 pairs of {WIDTH} per device on {len(devices)} devices, {topology}\n")
    print("| loss | form | temp per device | collectives in the program |\n|---|---|---|---|")
    for (kind, form), loss in forms.items():
        print(f"| {kind} | {form} | {' | '.join(compile_for(mesh, loss))} |", flush=True)


if __name__ == "__main__":
    main()
