"""ViT-B/32 against the PyTorch CLIPModel of transformers, on the same cores in one run: training, inference, compiling.

    python packages/clip-models/benchmarks/speed.py --torch-python /path/to/venv/bin/python

That other environment has `torch` and `transformers`. Each side runs in a process of its own, which does one step when
it is told to: the two take turns, so that what else the machine does meets both alike.
"""

import argparse
import os
import subprocess
import sys
import time

BATCH_SIZE = 32
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}


def ours(dtype):
    """Returns the functions that train and infer, compiled, and the seconds that compiling took."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import clip_models

    config = clip_models.preset("vit-b-32")
    config = replace(config, compute=clip_models.ComputeConfig(dtype=dtype))
    params = clip_models.init(config, jax.random.key(0))
    tx = optax.adamw(1e-5)
    rng = np.random.default_rng(0)
    batch = {
        "pixel_values": rng.normal(size=(BATCH_SIZE, 224, 224, 3)).astype(np.float32),
        "input_ids": rng.integers(0, 49407, (BATCH_SIZE, 77)).astype(np.int32),
    }

    def loss(params, batch):
        logits = clip_models.apply(config, params, **batch).logits_per_image
        both = jax.nn.log_softmax(logits, 0) + jax.nn.log_softmax(logits, 1)
        return -jnp.diagonal(both).mean() / 2

    def update(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.jit(tx.init)(params)
    start = time.perf_counter()
    train = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    compiling = time.perf_counter() - start
    infer = jax.jit(lambda p, b: clip_models.apply(config, p, **b).logits_per_image).lower(params, batch).compile()

    def step():
        nonlocal params, state
        params, state, value = train(params, state, batch)
        value.block_until_ready()

    return step, lambda: infer(params, batch).block_until_ready(), compiling


def theirs(dtype):
    """The same of PyTorch, which compiles nothing."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).to(getattr(torch, dtype)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = {
        "pixel_values": torch.randn(BATCH_SIZE, 3, 224, 224, dtype=getattr(torch, dtype)),
        "input_ids": torch.randint(0, 49407, (BATCH_SIZE, 77)),
    }

    def step():
        optimizer.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()

    def infer():
        with torch.inference_mode():
            return model(**batch).logits_per_image

    return step, infer, 0.0


def serve(side, dtype):
    """Does what standard input asks for, and prints the seconds."""
    step, infer, compiling = (ours if side == "ours" else theirs)(dtype)
    print(compiling, flush=True)
    for line in sys.stdin:
        run = step if line.strip() == "train" else infer
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - start, time.process_time() - cpu_start, flush=True)


class Worker:
    """One side, in a process of its own."""

    def __init__(self, python, side, dtype, huge_pages):
        self.process = subprocess.Popen(
            [python, __file__, "--serve", side, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(HUGE_PAGES if huge_pages else {})},
        )
        self.compiling = float(self.process.stdout.readline())

    def run(self, what):
        """Returns the seconds of one step, and those of all its threads on a core."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return tuple(map(float, self.process.stdout.readline().split()))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="of an environment with torch and transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="also time ours in bfloat16")
    parser.add_argument(
        "--huge-pages", choices=("none", "ours", "both"), default="ours", help="ours: as clip-train starts itself"
    )
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    ours_has, theirs_has = args.huge_pages != "none", args.huge_pages == "both"
    workers = {"clip-models float32": Worker(sys.executable, "ours", "float32", ours_has)}
    if args.torch_python:
        workers["transformers float32"] = Worker(args.torch_python, "theirs", "float32", theirs_has)
    if args.bfloat16:
        workers["clip-models bfloat16"] = Worker(sys.executable, "ours", "bfloat16", ours_has)
    for what in ("train", "infer"):
        seconds = {name: [] for name in workers}
        for turn in range(args.rounds + 1):
            for name, worker in workers.items():
                taken = worker.run(what)
                if turn:  # the first is warm-up
                    seconds[name].append(taken)
            print(what, {name: [round(t, 2) for t, _ in taken] for name, taken in seconds.items()}, file=sys.stderr)
        best = {name: [min(kind) for kind in zip(*taken, strict=True)] for name, taken in seconds.items()}
        first, first_cpu = best["clip-models float32"]
        for name, (wall, cpu) in best.items():
            print(
                f"{what} {name}: {BATCH_SIZE / wall:.2f} images/s, ×{wall / first:.2f} of our time, "
                f"×{cpu / first_cpu:.2f} of our CPU time",
                flush=True,
            )
    print(f"compiling the training step: {workers['clip-models float32'].compiling:.1f} s")
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
