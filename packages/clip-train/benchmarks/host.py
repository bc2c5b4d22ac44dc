"""What the host pays: to dispatch a step, to bring a batch to the devices, and to make a state that is divided.

    python packages/clip-train/benchmarks/host.py [dispatch | init] [--preset siglip-b-16-224]

`dispatch` runs a step over a state with as many arrays as the preset's, of one number each, so that the arithmetic
costs nothing. `init` makes the state of AdamW over eight devices of this processor, and says what memory that took.
"""

import argparse
import functools
import os
import resource
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_models import init, logical_axes, preset
from clip_sharding import MeshConfig, bytes_per_device, make_mesh, shardings, strategy, to_global
from clip_train.state import TrainState, abstract_state, create_state


def dispatch(config, turns=300):
    """Milliseconds until a call returns, and until a batch of 256 pictures is on the mesh: the fastest of many."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    tx = optax.adamw(1e-3)
    params = jax.tree.map(lambda leaf: jnp.zeros(1, leaf.dtype), shapes)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        return jax.tree.map(lambda leaf: leaf + 1, state), {"loss": jnp.mean(batch["image"][0, 0, 0])}

    h, w = config.vision.image_shape
    batch = {"image": np.zeros((256, h, w, 3), np.uint8), "input_ids": np.zeros((256, 64), np.int32)}
    calls, transfers = [], []
    for _ in range(turns):
        start = time.perf_counter()
        placed = to_global(batch, mesh)
        middle = time.perf_counter()
        state, metrics = step(state, placed)
        calls.append(time.perf_counter() - middle)
        transfers.append(middle - start)
        jax.block_until_ready((state, metrics))
    print(f"{len(jax.tree.leaves(state))} arrays of state")
    print(f"dispatch of a step  {1e3 * min(calls):.2f} ms at best, {1e3 * np.median(calls):.2f} ms in the median")
    print(
        f"batch of 256        {1e3 * min(transfers):.2f} ms at best, {1e3 * np.median(transfers):.2f} ms in the median"
    )


def initialise(config):
    """The peak of resident memory while a state is made, over the state's own bytes."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    make = functools.partial(init, config, jax.random.key(0))
    placed = shardings(strategy("fsdp"), mesh, logical_axes(config), jax.eval_shape(make))
    tx = optax.adamw(1e-3)
    abstract = abstract_state(make, tx, placed, mesh)
    size = 8 * bytes_per_device(abstract)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    jax.block_until_ready(create_state(make, tx, abstract))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    print(
        f"{count / 1e6:.0f} M parameters, a state of {size / 1e9:.2f} GB: peak {peak / 1e9:.2f} GB, {peak / size:.2f} ×"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("dispatch", "init"), default="dispatch")
    parser.add_argument("--preset", default="siglip-b-16-224")
    args = parser.parse_args()
    {"dispatch": dispatch, "init": initialise}[args.what](preset(args.preset))


if __name__ == "__main__":
    main()
