"""What training needs on TPUs that nobody here owns: memory, FLOPs and bytes, from the TPU compiler on any machine.

    pip install "clip-sharding[tpu]"
    python packages/clip-models/benchmarks/tpu.py [--topology v5e:2x4]

Compiles forward and backward of a model in bfloat16, the batch divided over the devices and the parameters on each.
"""

import argparse
import os
import time
from dataclasses import replace

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from clip_models import ComputeConfig, apply, init, preset
from clip_sharding import DoesNotFitError, MeshConfig, batch_sharding, find_topology, make_mesh, plan


def planned_step(config, topology, batch_size):
    """Forward and backward of a local loss: every device compares its own images and texts."""
    mesh = make_mesh(MeshConfig(), topology.devices)
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
    images = jax.ShapeDtypeStruct((batch_size * mesh.size, *config.vision.image_shape, 3), jnp.bfloat16, sharding=rows)
    ids = jax.ShapeDtypeStruct((batch_size * mesh.size, config.text.max_length), jnp.int32, sharding=rows)

    def loss(params, images, ids):
        output = apply(config, params, pixel_values=images, input_ids=ids)
        return jnp.mean(jnp.sum(output.image_embeds * output.text_embeds, axis=-1))

    with jax.set_mesh(mesh):
        return plan(jax.jit(jax.value_and_grad(loss)), params, images, ids, topology=topology)


def budget(config, batch_size, remat):
    """FLOPs of forward and backward without remat; bytes, with it, if every use of an activation were one read.

    Two FLOPs are a multiplication and an addition. Each operation of a block reads what it takes and writes what it
    makes, in bfloat16, once: two norms, four projections, two products of attention and their softmax, the MLP's
    products and activation, two sums. Backward has two such uses for each of forward's, and those that remat repeats.
    Nothing is counted for the padding of tiles, for parameters, and for what is outside the blocks.
    """
    flops = values = 0
    for tower, tokens, pixels in (
        (config.vision, config.vision.num_tokens, config.vision.num_patches * config.vision.patch_size**2 * 3),
        (config.text, config.text.max_length, 0),
    ):
        d, m, factors = tower.width, tower.mlp_dim, len(tower.activations)
        flops += 6 * tower.num_layers * tokens * (4 * d**2 + (1 + factors) * d * m + 2 * tokens * d)
        flops += 4 * pixels * d  # pixels have no gradient
        scores = 4 * tower.num_heads * tokens**2
        forward = tokens * ((23 + factors) * d + (2 + 2 * factors) * m) + scores
        # Products are the projections of 8 d (queries, keys and values 6) and the MLP's of (1 + f)(d + m).
        products = {"none": None, "minimal": 8 * d + (1 + factors) * (d + m), "proj": 6 * d, "full": 0}[remat]
        repeated = 0 if products is None else forward - tokens * products
        values += tower.num_layers * (3 * forward + repeated)
    return flops * batch_size, 2 * values * batch_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--preset", default="siglip-b-16-224")
    parser.add_argument("--batch-size", type=int, default=256, help="per device")
    parser.add_argument("--remat", nargs="+", default=["none", "minimal", "proj", "full"])
    parser.add_argument("--attention", nargs="+", default=["xla"])
    args = parser.parse_args()
    topology = find_topology(args.topology)
    flops, _ = budget(preset(args.preset), args.batch_size, "none")
    print(f"{args.preset}, bfloat16, {args.batch_size} per device on {len(topology.devices)} devices, {topology.name}")
    print(f"budget: {flops / 1e12:.2f} TFLOP per device\n")
    print("| remat | attention | memory | FLOPs / budget | bytes | bytes / budget | limit | compile |")
    print("|---|---|---|---|---|---|---|---|")
    for remat in args.remat:
        _, size = budget(preset(args.preset), args.batch_size, remat)
        for attention in args.attention:
            compute = ComputeConfig(dtype="bfloat16", remat=remat, attention=attention)
            start = time.perf_counter()
            try:
                made = planned_step(replace(preset(args.preset), compute=compute), topology, args.batch_size)
            except DoesNotFitError as refused:
                print(f"| {remat} | {attention} | {refused.needed / 2**30:.1f} GiB: refused | | | | | |", flush=True)
                continue
            limit = made.roofline.limit if made.roofline else "–"
            print(
                f"| {remat} | {attention} | {made.memory['peak'] / 2**30:.2f} GiB | {made.flops / flops:.3f} | "
                f"{made.bytes / 1e9:.0f} GB | {made.bytes / size:.2f} | {limit} | "
                f"{time.perf_counter() - start:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
