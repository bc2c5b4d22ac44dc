"""What training needs on TPUs that nobody here owns: memory, FLOPs and bytes, from the TPU compiler on any machine.

    pip install "libtpu==0.0.42.*"
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python packages/clip-models/benchmarks/tpu.py [--topology v5e:2x4]

Compiles forward and backward of a model in bfloat16, the batch divided over the devices and the parameters on each.
"""

import argparse
import re
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_models import ComputeConfig, apply, init, preset


def compiled_step(config, mesh, batch_size):
    """Forward and backward of a local loss: every device compares its own images and texts."""
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
    images = jax.ShapeDtypeStruct((batch_size * mesh.size, *config.vision.image_shape, 3), jnp.bfloat16, sharding=rows)
    ids = jax.ShapeDtypeStruct((batch_size * mesh.size, config.text.max_length), jnp.int32, sharding=rows)

    def loss(params, images, ids):
        output = apply(config, params, pixel_values=images, input_ids=ids)
        return jnp.mean(jnp.sum(output.image_embeds * output.text_embeds, axis=-1))

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss)).lower(params, images, ids).compile()


def per_step(config, mesh, batch_size):
    """FLOPs and bytes of one device in a step. The compiler counts a loop's body once: two depths give the rest."""
    counts = []
    for num_layers in (1, 2):
        shallow = replace(
            config,
            vision=replace(config.vision, num_layers=num_layers),
            text=replace(config.text, num_layers=num_layers),
            compute=replace(config.compute, unroll=num_layers),
        )
        cost = compiled_step(shallow, mesh, batch_size).cost_analysis()
        counts.append((cost["flops"], cost["bytes accessed"]))
    assert config.vision.num_layers == config.text.num_layers
    return [first + (config.vision.num_layers - 1) * (second - first) for first, second in zip(*counts, strict=True)]


def model_costs(config, batch_size):
    """FLOPs and bytes by the matrix products alone, forward and backward, without remat.

    Two FLOPs are a multiplication and an addition. Each product reads its activations and writes its result once, in
    bfloat16; backward has two for each forward. What stands between products is taken to be part of them.
    """
    flops = values = 0
    for tower, tokens, pixels in (
        (config.vision, config.vision.num_tokens, config.vision.num_patches * config.vision.patch_size**2 * 3),
        (config.text, config.text.max_length, 0),
    ):
        d, m, factors = tower.width, tower.mlp_dim, len(tower.activations)
        flops += 6 * tower.num_layers * tokens * (4 * d**2 + (1 + factors) * d * m + 2 * tokens * d)
        flops += 4 * pixels * d  # pixels have no gradient
        weights = tower.num_heads * tokens**2
        values += 3 * tower.num_layers * (tokens * ((8 + 1 + factors + 4) * d + (1 + factors) * m) + 2 * weights)
    return flops * batch_size, 2 * values * batch_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--preset", default="siglip-b-16-224")
    parser.add_argument("--batch-size", type=int, default=256, help="per device")
    parser.add_argument("--remat", nargs="+", default=["none", "minimal", "proj", "full"])
    parser.add_argument("--attention", nargs="+", default=["xla"])
    args = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    flops, values = model_costs(preset(args.preset), args.batch_size)
    print(f"{args.preset}, bfloat16, {args.batch_size} per device on {len(devices)} devices, {args.topology}")
    print(f"the model's matrix products: {flops / 1e12:.2f} TFLOP and {values / 1e9:.0f} GB per device\n")
    print("| remat | attention | memory | FLOPs / model's | bytes / model's | compile |\n|---|---|---|---|---|---|")
    for remat in args.remat:
        for attention in args.attention:
            config = replace(
                preset(args.preset), compute=ComputeConfig(dtype="bfloat16", remat=remat, attention=attention)
            )
            start = time.perf_counter()
            try:
                memory = compiled_step(config, mesh, args.batch_size).memory_analysis()
                memory = f"{memory.peak_memory_in_bytes / 1e9:.2f} GB"
            except jax.errors.JaxRuntimeError as error:
                needed = re.search(r"\(([\d.]+)(\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
                if needed is None:
                    raise
                memory = f"refused: {needed[1]} {needed[2]}iB of {needed[3]}iB"
            seconds = time.perf_counter() - start
            executed, moved = per_step(config, mesh, args.batch_size)
            print(
                f"| {remat} | {attention} | {memory} | {executed / flops:.3f} | {moved / values:.2f} | "
                f"{seconds:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
