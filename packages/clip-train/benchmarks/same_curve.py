"""The same training, here and by open_clip: same weights, batches, AdamW and learning rates, step by step.

    python packages/clip-train/benchmarks/same_curve.py --torch-python /path/to/venv/bin/python [--loss sigmoid softmax]

That other environment has `open_clip_torch`. It draws the weights and trains by `open_clip_train`'s own
`train_one_epoch`, losses, parameter groups and cosine; here a config names that model's directory, and what follows is
what `clip-train run` does. Both read the digits. Only the weights and the batches, as arrays, pass between.

The yardstick is what float32 itself does: the same open_clip in float64, from the same weights. At large learning
rates, and far from where a loss likes to begin, rounding grows along the way, there as here.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
OPTIMIZER = {"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6, "weight_decay": 0.2, "clip_norm": 1.0}
VISION = {"image_size": 32, "patch_size": 8, "width": 96, "layers": 4, "head_width": 24}
TEXT = {"context_length": 12, "vocab_size": 46, "width": 96, "heads": 4, "layers": 2, "pool_type": "eos"}
LOGITS = {
    "softmax": {"init_logit_scale": math.log(1 / 0.07)},
    "sigmoid": {"init_logit_scale": math.log(10), "init_logit_bias": -10.0},
}


def make(directory, model_cfg):
    """Write a random model as open_clip does."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(CLIP(**model_cfg).state_dict(), directory / "open_clip_model.safetensors", metadata={"format": "pt"})
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))


def theirs(directory, kind, rate, dtype):
    """The loss of each step, by open_clip's trainer."""
    import types

    import torch
    from open_clip.loss import ClipLoss, SigLipLoss
    from open_clip.model import CLIP
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch
    from safetensors.torch import load_file

    model = CLIP(**json.loads((directory / "open_clip_config.json").read_text())["model_cfg"], output_dict=True)
    model.load_state_dict(load_file(directory / "open_clip_model.safetensors"))
    dtype = getattr(torch, dtype)
    torch.set_default_dtype(dtype)
    model = model.to(dtype)
    batches = [(torch.tensor(pixels, dtype=dtype), torch.tensor(ids).long()) for pixels, ids in read_batches(directory)]

    # As open_clip_train.main has it.
    def exclude(name, parameter):
        named = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        return parameter.ndim < 2 or named

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": OPTIMIZER["weight_decay"]},
    ]
    betas = OPTIMIZER["beta1"], OPTIMIZER["beta2"]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=OPTIMIZER["epsilon"])
    losses = []

    class Recorded(SigLipLoss if kind == "sigmoid" else ClipLoss):
        def forward(self, *args, **kwargs):
            parts = super().forward(*args, **kwargs)
            losses.append(sum(parts.values()).item())
            return parts

    class Loader(list):
        num_batches, num_samples = len(batches), len(batches) * len(batches[0][0])

    data = {"train": types.SimpleNamespace(set_epoch=lambda epoch: None, dataloader=Loader(batches))}
    args = types.SimpleNamespace(
        accum_freq=1,
        batch_size=len(batches[0][0]),
        device="cpu",
        distill=False,
        grad_clip_norm=OPTIMIZER["clip_norm"],
        horovod=False,
        local_rank=0,
        log_every_n_steps=10**9,
        log_local=False,
        precision="fp32",
        rank=0,
        save_logs=False,
        skip_scheduler=False,
        wandb=False,
        world_size=1,
    )
    train_one_epoch(
        model, data, Recorded(), 0, optimizer, None, cosine_lr(optimizer, rate, 0, len(batches)), None, args
    )
    return losses


def read_batches(directory):
    """Pictures float32 `[b, 3, h, w]`, normalised as open_clip does, and token ids `[b, t]`."""
    arrays = np.load(directory / "batches.npz")
    mean, std = np.array([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]], np.float32)
    for image, ids in zip(arrays["image"], arrays["input_ids"], strict=True):
        yield ((image.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2), ids


def ours(directory, num_steps, batch_size, rate):
    """The loss of each step, by the step that a config makes; what it saw is written as `batches.npz`."""
    import itertools

    import jax

    from clip_train.batches import GlobalBatches
    from clip_train.config import TrainConfig
    from clip_train.config_file import parse_config
    from clip_train.run import start
    from clip_train.screen import make_console
    from clip_train.setup import prepare, resolve

    class NoCheckpoints:
        def latest_step(self):
            """There is none."""

    config = parse_config(
        TrainConfig,
        {
            "output_dir": str(directory / "run"),
            "model": {"pretrained": str(directory)},
            "data": {
                "train": [{"format": "tfrecord", "shards": str(DIGITS / "shards" / "train-*.tfrecord")}],
                "tokenizer": str(DIGITS / "tokenizer"),
                "pad_id": 0,
            },
            "optimizer": {**OPTIMIZER, "learning_rate": rate, "max_logit_scale": 100.0},
            "schedule": {"warmup": 0, "decay": "cosine"},
            "global_batch_size": batch_size,
            "train_samples": num_steps * batch_size,
        },
    )
    setup = prepare(*resolve(config))
    losses, seen = [], []
    with setup.pipeline as pipeline:
        state, _ = start(setup, NoCheckpoints(), pipeline, make_console())
        step = setup.step()
        for batch in itertools.islice(GlobalBatches(pipeline, setup.mesh), num_steps):
            seen.append(jax.device_get({name: batch[name] for name in ("image", "input_ids")}))
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
    np.savez(directory / "batches.npz", **{name: np.stack([batch[name] for batch in seen]) for name in seen[0]})
    return np.array(jax.device_get(losses), np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="of an environment with open_clip_torch")
    parser.add_argument("--loss", nargs="+", choices=LOGITS, default=list(LOGITS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(Path(args.make[0]), json.loads(args.make[1]))
        return
    if args.train:
        folder, kind, rate, dtype = args.train
        print(json.dumps(theirs(Path(folder), kind, float(rate), dtype)))
        return
    if args.torch_python is None:
        parser.error("--torch-python: an environment with open_clip_torch is needed")

    def ask(*command):
        done = subprocess.run([args.torch_python, __file__, *command], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.splitlines()

    from tokenizers import Tokenizer

    eos = Tokenizer.from_file(str(DIGITS / "tokenizer" / "tokenizer.json")).token_to_id("</s>")
    print("| loss | first | last | largest difference from open_clip | of open_clip in float64 from float32 |")
    print("|---|---|---|---|---|")
    for kind in args.loss:
        model_cfg = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": {**TEXT, "eos_id": eos}, **LOGITS[kind]}
        with tempfile.TemporaryDirectory() as folder:
            ask("--make", folder, json.dumps(model_cfg))
            here = ours(Path(folder), args.steps, args.batch_size, args.learning_rate)
            there, exact = (
                np.array(json.loads(ask("--train", folder, kind, str(args.learning_rate), dtype)[-1]))
                for dtype in ("float32", "float64")
            )
        print(
            f"| {kind} | {there[0]:.4f} | {there[-1]:.4f} | {np.abs(here - there).max():.1e} | "
            f"{np.abs(exact - there).max():.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
