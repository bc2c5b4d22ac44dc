"""What the losses need on TPU slices that nobody here owns: memory, bytes sent and the least time, ring against dense.

    pip install clip-losses "clip-sharding[tpu]"
    python packages/clip-losses/benchmarks/tpu.py [--topology v5e:16x16] [--pairs 32768 65536 …] [--width 768]

Compiles value and gradients of bfloat16 embeddings, as the ring and as the plain form that XLA partitions.
"""

import argparse
import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from clip_losses import sharded_sigmoid_loss, sharded_softmax_loss
from clip_sharding import DoesNotFitError, MeshConfig, batch_sharding, find_topology, make_mesh, plan


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--pairs", type=int, nargs="+", default=[2**n for n in range(15, 21)])
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    topology = find_topology(args.topology)
    mesh = make_mesh(MeshConfig(), topology.devices)
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    over = {"mesh": mesh, "axis_name": ("data", "fsdp")}
    forms = {
        ("sigmoid", "ring"): lambda *x: sharded_sigmoid_loss(*x, **over),
        ("sigmoid", "dense"): dense_sigmoid,
        ("softmax", "ring"): lambda *x: sharded_softmax_loss(*x[:3], **over),
        ("softmax", "dense"): dense_softmax,
    }
    print(
        "| pairs | loss | form | peak, GiB | sent, MB | arithmetic | HBM | network |\n|---|---|---|---|---|---|---|---|"
    )
    for pairs in args.pairs:
        embeds = jax.ShapeDtypeStruct((pairs, args.width), jnp.bfloat16, sharding=rows)
        for (kind, form), loss in forms.items():
            step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)), out_shardings=(whole, (rows, rows, whole, whole)))
            try:
                made = plan(step, embeds, embeds, scalar, scalar, topology=topology)
            except DoesNotFitError as error:
                print(f"| {pairs:,} | {kind} | {form} | refused: {error.needed / 2**30:.1f} | | | | |", flush=True)
                continue
            line = made.roofline
            times = " | ".join(f"{1e3 * seconds:.2f} ms" for seconds in (line.compute, line.memory, line.network))
            sent = "; ".join(f"{name} {sent / 1e6:,.0f}" for name, sent in made.sent.items() if sent > 5e4)
            print(f"| {pairs:,} | {kind} | {form} | {made.memory['peak'] / 2**30:.3f} | {sent} | {times} |", flush=True)


if __name__ == "__main__":
    main()
