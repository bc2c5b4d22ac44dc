"""What a checkpoint every 100 steps adds to a run's steps, in time and in processor time.

    uv run python packages/clip-train/benchmarks/save_cost.py examples/digits/config.json --rounds 6

Rounds of 100 steps on one batch alternate in one process: with a save after the first of them, whose end is waited for
in the same round, and without. On a CPU the save takes its share of the cores from the steps: it costs no less than its
processor time there; beside an accelerator only what it keeps the loop from going on.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax

from clip_models import init
from clip_train.batches import GlobalBatches
from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_file import read_config
from clip_train.setup import prepare, resolve
from clip_train.state import create_state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="in a round")
    args = parser.parse_args()

    setup = prepare(*resolve(read_config(TrainConfig, args.config, args.overrides)))
    state = create_state(functools.partial(init, setup.model, jax.random.key(0)), setup.tx, setup.abstract)
    step = setup.step()
    with (
        setup.pipeline as pipeline,
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(folder, keep=1) as checkpoints,
    ):
        batch, cursor = next(GlobalBatches(pipeline, setup.mesh)), pipeline.cursor()
        state, metrics = step(state, batch)
        checkpoints.save(1, state, cursor)
        checkpoints.wait()
        done, wall, cpu, stalled = 1, ([], []), ([], []), []
        for i in range(2 * args.rounds):
            saves = i % 2
            jax.block_until_ready(metrics)
            began, cpu_began = time.perf_counter(), time.process_time()
            for n in range(args.steps):
                state, metrics = step(state, batch)
                done += 1
                jax.block_until_ready(metrics)
                if saves and n == 0:
                    before = time.perf_counter()
                    checkpoints.save(done, state, cursor)
                    stalled.append(time.perf_counter() - before)
            if saves:
                checkpoints.wait()
            wall[saves].append(time.perf_counter() - began)
            cpu[saves].append(time.process_time() - cpu_began)
    plain = statistics.median(wall[0])
    print(f"a step without saving  {1e3 * plain / args.steps:.2f} ms")
    for name, (without, with_save) in (("time", wall), ("processor time", cpu)):
        ratio = statistics.median(b / a for a, b in zip(without, with_save, strict=True))
        print(f"{name:22} × {ratio:.4f} with a save every {args.steps} steps")
    print(f"the loop waits         {1e3 * statistics.median(stalled):.1f} ms for a save")


if __name__ == "__main__":
    main()
