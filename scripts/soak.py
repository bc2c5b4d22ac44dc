"""Kills a run at random moments until it has finished, and compares it with one that was left alone.

    uv run python scripts/soak.py --kills 20
    uv run python scripts/soak.py --kills 3 --format parquet --optimizer muon --ema --loss softmax

The data are written in another format first, if one is asked for; `--to gs://BUCKET/PREFIX` has the killed run live in
a bucket. Both runs end with the same metrics of each step and the same weights, bit for bit, or the script ends with
status 1.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from clip_data import SourceConfig, write_shards
from clip_data.buckets import list_objects, read_object
from clip_train import load_run
from clip_train.config_file import read_json

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "distributed_shampoo")
# What measures the machine and not the run.
TIMES = ("seconds", "data_", "images_per_second", "mfu", "memory", "skipped")


def command(config, output, overrides):
    pairs = [f"output_dir={output}", "evaluation=[]", *overrides]
    clip_train = Path(sys.executable).parent / "clip-train"
    return [str(clip_train), "run", str(config), *(word for pair in pairs for word in ("--set", pair))]


def rows_of(output):
    rows = [json.loads(line) for line in metrics_of(output).splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]


def metrics_of(output):
    path = f"{output}/metrics.jsonl"
    if "://" in path:
        return bytes(read_object(path)) if list_objects(path) else b""
    return Path(path).read_bytes() if Path(path).exists() else b""


def num_rows(output):
    return len(metrics_of(output).splitlines())


def changes(args, folder):
    """What the options change in the config."""
    made = []
    if args.format:
        tree = read_json(args.config)
        (source,) = tree["data"]["train"]
        shards = args.config.resolve().parent / source["shards"]
        given = SourceConfig(**{**source, "shards": str(shards)})
        written = write_shards(given, folder / "shards", format=args.format)
        train = {"format": args.format, "shards": list(written.shards)}
        made.append(f"data.train={json.dumps([train])}")
    if args.optimizer:
        made.append(f"optimizer={json.dumps({'kind': args.optimizer})}")
    if args.loss == "softmax":
        made += ['loss={"kind": "softmax"}', "model.config.logit_bias_init=null"]
    if args.ema:
        made.append("ema={}")
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("examples/digits/config.json"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds of a run before it is killed")
    parser.add_argument(
        "--set",
        action="append",
        dest="overrides",
        default=["train_samples=46080", "checkpoint.every_steps=5", "checkpoint.keep=2"],
    )
    parser.add_argument("--format", choices=("tfrecord", "webdataset", "parquet"), help="of the shards")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="with its defaults")
    parser.add_argument("--loss", choices=("sigmoid", "softmax"), default="sigmoid")
    parser.add_argument("--ema", action="store_true", help="keep moving averages")
    parser.add_argument("--to", metavar="ADDRESS", help="the killed run's place in a bucket: gs:// or s3://")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    whole, killed = folder / "whole", args.to or folder / "killed"
    args.overrides = [*changes(args, folder), *args.overrides]
    subprocess.run(command(args.config, whole, args.overrides), check=True, stdout=subprocess.DEVNULL)

    for kill in range(args.kills):
        process = subprocess.Popen(
            command(args.config, killed, args.overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        number = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
        before, seconds = num_rows(killed), rng.uniform(0, args.longest)
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            status = process.wait()
        print(
            f"{kill + 1:3}  {signal.Signals(number).name} after {seconds:4.1f} s  status {status}  "
            f"rows {before} -> {num_rows(killed)}",
            flush=True,
        )
    start = time.monotonic()
    subprocess.run(command(args.config, killed, args.overrides), check=True, stdout=subprocess.DEVNULL)
    print(f"the last start ran to the end in {time.monotonic() - start:.0f} s")

    same_rows = rows_of(whole) == rows_of(killed)
    weights = [jax.tree.leaves(load_run(output)[1]) for output in (whole, killed)]
    same_weights = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    print(f"{len(rows_of(whole))} rows of metrics identical: {same_rows}; weights identical: {same_weights}")
    if same_rows and same_weights:
        shutil.rmtree(folder)
        return 0
    print(f"look at {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
