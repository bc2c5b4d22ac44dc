"""What a step of the digits costs beside what it must: its own parts compiled alone, and the same without accumulation.

    python packages/clip-train/benchmarks/step.py [alone] [accumulation --microbatches 2 4 8] [--set FIELD=VALUE]

`alone`: the run's step over one that is gradient, clipped AdamW and new parameters, without norms, guard or schedule
reports. `accumulation`: a step in microbatches over the same step at once, per sample; `activations` is the temporary
memory that XLA plans for each. Steps take turns in one process; the ratio is of medians of their seconds of CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from clip_train.batches import GlobalBatches
from clip_train.config import TrainConfig
from clip_train.config_file import read_config
from clip_train.optimizers import make_optimizer
from clip_train.run import start
from clip_train.screen import make_console
from clip_train.setup import prepare, resolve
from clip_train.state import TrainState

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "config.json"


class NoCheckpoints:
    """A run that begins."""

    def latest_step(self) -> None:
        """There is none."""


class Contestant:
    """A compiled step, its state and a batch."""

    def __init__(self, name, step, state, batch):
        began = time.perf_counter()
        self.name, self.batch = name, batch
        self.step = step.lower(state, batch).compile()
        self.compiling = time.perf_counter() - began
        self.state = jax.block_until_ready(self.step(state, batch))[0]
        self.seconds = []

    def run(self, num):
        """A turn of several steps."""
        began = time.process_time()
        for _ in range(num):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append((time.process_time() - began) / num)


def compare(contestants, *, turns, steps):
    """Print each one's seconds, and its multiple of the first one's."""
    for _ in range(turns):
        for contestant in contestants:
            contestant.run(steps)
    first = contestants[0]
    for contestant in contestants:
        # Of each turn, so that what else the machine does meets both alike.
        ratio = statistics.median(a / b for a, b in zip(contestant.seconds, first.seconds, strict=True))
        temporary = contestant.step.memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"{contestant.name:24s} {1e3 * statistics.median(contestant.seconds):8.1f} ms of CPU, x {ratio:.3f}; "
            f"activations {temporary:7.1f} MiB; compiled in {contestant.compiling:.1f} s",
            flush=True,
        )


def open_run(overrides):
    """A run on the digits, ready to start, with a state and a batch."""
    setup = prepare(*resolve(read_config(TrainConfig, DIGITS, overrides)))
    with setup.pipeline as pipeline:
        batch = next(GlobalBatches(pipeline, setup.mesh))
        return setup, start(setup, NoCheckpoints(), pipeline, make_console())[0], batch


def bare(setup, state):
    """Model, loss and optimizer alone, and the state that they need."""
    objective = setup.objective()
    tx = make_optimizer(setup.config.optimizer, setup.learning_rate)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(0), state.step)
        (loss, _), grads = jax.value_and_grad(objective, has_aux=True)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    params = jax.tree.map(jnp.copy, state.params)
    return step, TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def alone(args):
    """The run's step over its parts."""
    setup, state, batch = open_run(args.set)
    own = bare(setup, state)
    compare(
        [Contestant("model, loss, optimizer", *own, batch), Contestant("the run's step", setup.step(), state, batch)],
        turns=args.turns,
        steps=args.steps,
    )


def accumulation(args):
    """A step in microbatches over the same at once."""
    contestants = []
    for num in (1, *args.microbatches):
        setup, state, batch = open_run(
            [*args.set, f"microbatch_size={args.batch_size // num}", f"global_batch_size={args.batch_size}"]
        )
        name = "at once" if num == 1 else f"in {num} microbatches"
        contestants.append(Contestant(name, setup.step(), state, batch))
    compare(contestants, turns=args.turns, steps=args.steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("alone", "accumulation"), default="alone")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch-size", type=int, default=512, help="of `accumulation`")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--set", action="append", default=[], help="as of clip-train run")
    args = parser.parse_args()
    {"alone": alone, "accumulation": accumulation}[args.what](args)


if __name__ == "__main__":
    main()
