"""Optimizers on the digits: the loss along a run, and what a step costs, each against AdamW.

    python packages/clip-train/benchmarks/optimizers.py --steps 400 shampoo muon
    python packages/clip-train/benchmarks/optimizers.py --cost shampoo

Every optimizer sees the same batches from the same first weights. The loss is the mean of the last 20 steps; `reaches`
is the first step at which it is at or below AdamW's last. The cost is of whole steps, roots included, in turns of 20 of
one optimizer and 20 of the other, in seconds of CPU, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from clip_train.batches import GlobalBatches
from clip_train.config import TrainConfig
from clip_train.config_file import read_config
from clip_train.run import start
from clip_train.screen import make_console
from clip_train.setup import Setup, prepare, resolve

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "config.json"
KINDS = {
    "adamw": ["optimizer.kind=adamw", "optimizer.learning_rate=2e-3"],
    "adafactor": ["optimizer.kind=adafactor", "optimizer.learning_rate=2e-3"],
    "lion": ["optimizer.kind=lion", "optimizer.learning_rate=3e-4", "optimizer.weight_decay=0.7"],
    "muon": ["optimizer.kind=muon", "optimizer.learning_rate=2e-3"],
    "shampoo": ["optimizer.kind=distributed_shampoo", "optimizer.learning_rate=2e-3", "optimizer.block_size=128"],
}


def open_run(kind: str, num_steps: int, overrides: list[str]) -> Setup:
    """A run on the digits, ready to start."""
    config = read_config(TrainConfig, DIGITS, [*KINDS[kind], f"train_samples={num_steps * 128}", *overrides])
    return prepare(*resolve(config))


class NoCheckpoints:
    """A run that begins."""

    def latest_step(self) -> None:
        """There is none."""


def losses_of(kind: str, num_steps: int, overrides: list[str]) -> np.ndarray:
    """The loss of each step of a run."""
    setup = open_run(kind, num_steps, overrides)
    with setup.pipeline as pipeline:
        state, _ = start(setup, NoCheckpoints(), pipeline, make_console())
        step, losses = setup.step(), []
        for batch in itertools.islice(GlobalBatches(pipeline, setup.mesh), setup.num_steps):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
    return np.array(jax.device_get(losses))


def cost_of(kind: str, overrides: list[str], *, turns: int) -> tuple[float, float]:
    """Seconds of CPU and of the clock per step, as multiples of AdamW's."""
    runs = []
    for name in ("adamw", kind):
        setup = open_run(name, 10_000, overrides if name == kind else [])
        batch = next(GlobalBatches(setup.pipeline, setup.mesh))
        state, _ = start(setup, NoCheckpoints(), setup.pipeline, make_console())
        step = setup.step()
        state, metrics = step(state, batch)
        runs.append((step, state, batch))
        jax.block_until_ready(metrics)
    cpu, wall = ([], []), ([], [])
    for turn in range(2 * turns):
        step, state, batch = runs[turn % 2]
        started = time.process_time(), time.perf_counter()
        for _ in range(20):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        cpu[turn % 2].append((time.process_time() - started[0]) / 20)
        wall[turn % 2].append((time.perf_counter() - started[1]) / 20)
        runs[turn % 2] = step, state, batch
    for name, seconds in zip(("adamw", kind), cpu, strict=True):
        print(f"{name:10s} {1e3 * statistics.median(seconds):8.1f} ms of CPU per step")
    return tuple(statistics.median(ours) / statistics.median(adamw) for adamw, ours in (cpu, wall))


def main() -> None:
    """Print one line per optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[kind for kind in KINDS if kind != "adamw"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cost", action="store_true", help="measure steps instead of losses")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], help="for all but AdamW, as of clip-train run")
    args = parser.parse_args()
    if args.cost:
        for kind in args.kinds:
            cpu, wall = cost_of(kind, args.set, turns=args.turns)
            print(f"{kind:10s} {cpu:.2f} x AdamW's CPU, {wall:.2f} x its time", flush=True)
        return
    reference = losses_of("adamw", args.steps, [])
    target = reference[-20:].mean()
    print(f"adamw      loss {target:.4f} after {args.steps} steps", flush=True)
    for kind in args.kinds:
        losses = losses_of(kind, args.steps, args.set)
        means = np.convolve(losses, np.ones(20) / 20, mode="valid")
        reached = np.flatnonzero(means <= target)
        when = f"reaches AdamW's at step {reached[0] + 20}" if len(reached) else "does not reach AdamW's"
        print(f"{kind:10s} loss {means[-1]:.4f}, {when}", flush=True)


if __name__ == "__main__":
    main()
