"""Peak bytes of a training step beside open_clip's: ViT-B/32, float32, softmax, AdamW, on this machine's cores.

    python packages/clip-train/benchmarks/step_memory.py --torch-python /path/to/venv/bin/python [--batch-size 32]

That other environment has `open_clip_torch`. Each side is a process of its own that makes three steps; what counts is
the most bytes that it held in memory in the last two, beyond those that it held once its libraries were imported. Ours
is also told as XLA plans it. Both keep all activations; `--remat full` computes ours again, and gives open_clip's
`--grad-checkpointing` to the other side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


def resident(field):
    """Bytes of this process: VmRSS now, or VmHWM, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def forget_peak():
    """Have VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def ours(batch_size, remat):
    """The run's own step."""
    import jax

    from clip_models import preset
    from clip_train.batches import GlobalBatches
    from clip_train.config import TrainConfig
    from clip_train.config_file import parse_config
    from clip_train.run import start
    from clip_train.screen import make_console
    from clip_train.setup import prepare, resolve

    class NoCheckpoints:
        def latest_step(self):
            """There is none."""

    jax.devices()
    before = resident("VmRSS")
    model = preset("vit-b-32")
    model = dataclasses.replace(
        model, preprocess=dataclasses.replace(model.preprocess, tokenizer=str(DIGITS / "tokenizer"))
    )
    config = parse_config(
        TrainConfig,
        {
            "output_dir": tempfile.gettempdir() + "/none",
            "model": {"config": dataclasses.asdict(model)},
            "data": {"train": [{"format": "tfrecord", "shards": str(DIGITS / "shards" / "train-*.tfrecord")}]},
            "global_batch_size": batch_size,
            "train_samples": 3 * batch_size,
            "schedule": {"warmup": 0},
            "precision": "float32",
            "remat": remat,
        },
    )
    setup = prepare(*resolve(config))
    with setup.pipeline as pipeline:
        state, _ = start(setup, NoCheckpoints(), pipeline, make_console())
        batches = GlobalBatches(pipeline, setup.mesh)
        batch = next(batches)
        step = setup.step().lower(state, batch).compile()
        memory = step.memory_analysis()
        for number in range(3):
            if number == 1:
                forget_peak()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            batch = next(batches) if number < 2 else None
    # The state goes out where it came in.
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {"peak": resident("VmHWM") - before, "planned": planned}


def theirs(batch_size, remat):
    """What its trainer does with a batch."""
    import open_clip
    import torch

    before = resident("VmRSS")
    model = open_clip.create_model("ViT-B-32", output_dict=True).train()
    if remat != "none":
        model.set_grad_checkpointing()
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), open_clip.ClipLoss()
    for number in range(3):
        if number == 1:
            forget_peak()
        images, texts = torch.randn(batch_size, 3, 224, 224), torch.randint(1, 49407, (batch_size, 77))
        optimizer.zero_grad()
        sum(loss(**model(images, texts), output_dict=True).values()).backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
    return {"peak": resident("VmHWM") - before}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="of an environment with open_clip_torch")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--remat", default="none", choices=("none", "full"))
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, batch_size, remat = args.side
        print(json.dumps((ours if side == "ours" else theirs)(int(batch_size), remat)))
        return
    if args.torch_python is None:
        parser.error("--torch-python: an environment with open_clip_torch is needed")

    def ask(python, side, batch_size):
        command = [python, __file__, "--side", side, str(batch_size), args.remat]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )

    print("| batch | ours, GiB | as XLA plans it | open_clip, GiB | ours over open_clip |\n|--:|--:|--:|--:|--:|")
    for batch_size in args.batch_size:
        here, there = ask(sys.executable, "ours", batch_size), ask(args.torch_python, "theirs", batch_size)
        numbers = [here["peak"] / 2**30, here["planned"] / 2**30, there["peak"] / 2**30, here["peak"] / there["peak"]]
        print(f"| {batch_size} | {' | '.join(f'{number:.2f}' for number in numbers)} |", flush=True)


if __name__ == "__main__":
    main()
