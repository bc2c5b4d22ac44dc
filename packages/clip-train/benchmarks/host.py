"""What the host pays: for an update beside the devices' work, and to make a state that is divided.

    python packages/clip-train/benchmarks/host.py [update | init] [--preset NAME]

`update` brings batches of 256 pictures to a device and calls a run's own step (AdamW, norms, log, vote to stop) over a
state with as many arrays as the preset's, of one number each, so that the arithmetic costs nothing. `init` makes
parameters and AdamW's state over eight devices of this processor, and says what memory each took, compiling included.
"""

import argparse
import functools
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from clip_models import init, logical_axes, num_params, preset
from clip_sharding import MeshConfig, bytes_per_device, make_mesh, shardings, strategy, to_global
from clip_train.agreement import Agreement
from clip_train.guard import GuardConfig, guard
from clip_train.jsonl import Jsonl
from clip_train.log import MetricsLog
from clip_train.optimizers import AdamWConfig, make_optimizer
from clip_train.state import abstract_state, create_params, create_state, state_from_params
from clip_train.step import make_step


def update(config, turns=300):
    """Milliseconds that the host spends on each part of an update, and on all of them."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.ones(1, leaf.dtype), shapes)
    tx = make_optimizer(AdamWConfig(), 1e-3, axes=jax.tree.map(lambda _: ("embed",), shapes), mesh=mesh)
    tx = guard(tx, GuardConfig())
    whole = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)
    abstract = abstract_state(lambda: params, tx, whole, mesh)
    state = state_from_params(params, tx, abstract)

    def loss_fn(params, batch, key):
        return sum(leaf.sum() for leaf in jax.tree.leaves(params)) + batch["image"][0, 0, 0].mean(), {}

    step = make_step(loss_fn, tx, learning_rate=lambda _: 1e-3, abstract=abstract)
    h, w = config.vision.image_shape
    batch = {"image": np.zeros((256, h, w, 3), np.uint8), "input_ids": np.zeros((256, 64), np.int32)}
    parts = {"the batch's way": [], "the step's call": [], "log and vote": []}
    with tempfile.TemporaryDirectory() as folder:
        log, agreement = (
            MetricsLog([Jsonl(Path(folder) / "metrics.jsonl", first_step=0)], global_batch_size=256),
            Agreement(2),
        )
        for turn in range(turns):
            times = [time.perf_counter()]
            placed = to_global(batch, mesh)
            times.append(time.perf_counter())
            state, metrics = step(state, placed)
            times.append(time.perf_counter())
            log.push(turn + 1, metrics, started=times[0], data_seconds=0.0)
            agreement.cast([0, 0])
            times.append(time.perf_counter())
            jax.block_until_ready((state, metrics))
            if turn > 2:
                for part, start, end in zip(parts.values(), times, times[1:], strict=False):
                    part.append(end - start)
        log.close()
    parts["an update"] = [sum(each) for each in zip(*parts.values(), strict=True)]
    print(f"{len(jax.tree.leaves(state))} arrays of state; milliseconds at best and in the median")
    for name, seconds in parts.items():
        print(f"{name:16} {1e3 * min(seconds):6.2f} {1e3 * np.median(seconds):6.2f}")


def initialise(config):
    """The peak of resident memory while parameters and state are made, over their own bytes."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    make = functools.partial(init, config, jax.random.key(0))
    placed = shardings(strategy("fsdp"), mesh, logical_axes(config), jax.eval_shape(make))
    tx = optax.adamw(1e-3)
    abstract = abstract_state(make, tx, placed, mesh)
    before, began = peak(), time.perf_counter()
    params = jax.block_until_ready(create_params(make, abstract.params))
    told(f"{num_params(config) / 1e6:.0f} M parameters", abstract.params, before, began)
    del params
    began = time.perf_counter()
    jax.block_until_ready(create_state(make, tx, abstract))
    told("the state of AdamW", abstract, before, began)


def told(name, tree, before, began):
    """Print what was made."""
    size, used, seconds = 8 * bytes_per_device(tree), peak() - before, time.perf_counter() - began
    print(f"{name}: {size / 1e9:.2f} GB, peak {used / 1e9:.2f} GB, {used / size:.2f} ×, {seconds:.0f} s")


def peak():
    """The most bytes that were in use."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("update", "init"), default="update")
    parser.add_argument("--preset", help="siglip-b-16-224 for update, vit-l-14 for init")
    args = parser.parse_args()
    if args.what == "update":
        update(preset(args.preset or "siglip-b-16-224"))
    else:
        initialise(preset(args.preset or "vit-l-14"))


if __name__ == "__main__":
    main()
