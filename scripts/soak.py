"""Kills a run at random moments until it has finished, and compares it with one that was left alone.

    uv run python scripts/soak.py --kills 20
    uv run python scripts/soak.py --kills 3 --format parquet --optimizer muon --ema --loss softmax
    uv run python scripts/soak.py --kills 3 --processes 2 --to gs://BUCKET/PREFIX
    uv run python scripts/soak.py --kills 3 --devices 8,1,4

The digits are written in the format that is asked for, one picture in forty damaged. A start is killed, or one process
of several is, or it is asked to stop. Both runs end with the same metrics of each step, evaluations and lost samples
among them, and the same state, bit for bit: parameters, optimizer, averages and position in the data; or the script
ends with status 1. On several numbers of devices sums are rounded otherwise: there losses agree to 1e-5, and nothing
else is compared.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_data import SourceConfig, read_records
from clip_data.buckets import list_objects, read_object
from clip_data.tfrecord import write_examples
from clip_models import init, save_pretrained
from clip_train import Checkpoints, TrainConfig
from clip_train.config_file import read_config, read_json
from clip_train.output import Output
from clip_train.setup import prepare, resolve

FORMATS = ("tfrecord", "webdataset", "parquet", "csv", "tsv", "folder")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "distributed_shampoo")
LOSSES = ("sigmoid", "softmax", "caption", "both", "distillation")
# What measures the machine and not the run.
TIMES = ("seconds", "data_", "images_per_second", "mfu", "memory")
DECODER = {"vocab_size": 46, "max_length": 12, "width": 96, "num_layers": 2, "num_heads": 4}
NUM_SHARDS = 3
# After so long without an end a process hangs. One of several sees within a minute that another is gone, and waits five
# minutes for those that never came.
HANGS = 400.0


def write_data(source, folder, format):
    """The records of a source as `format`, every fortieth picture damaged; what a config says of them."""
    records = [
        {"key": f"{number:06d}", "png": record.image if number % 40 else b"<html>", "caption": record.caption}
        for number, record in enumerate(read_records(source))
    ]
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        part, stem = records[shard::NUM_SHARDS], f"train-{shard}"
        if format == "tfrecord":
            write_examples(str(folder / f"{stem}.tfrecord"), part)
        elif format == "parquet":
            pq.write_table(pa.Table.from_pylist(part), folder / f"{stem}.parquet")
        elif format == "webdataset":
            with tarfile.open(folder / f"{stem}.tar", "w") as tar:
                for record in part:
                    for name, data in (("png", record["png"]), ("txt", record["caption"].encode())):
                        member = tarfile.TarInfo(f"{record['key']}.{name}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        else:
            pictures = folder / stem
            pictures.mkdir()
            for record in part:
                (pictures / f"{record['key']}.png").write_bytes(record["png"])
            if format == "folder":
                for record in part:
                    (pictures / f"{record['key']}.txt").write_text(record["caption"])
            else:
                with (folder / f"{stem}.{format}").open("w", newline="") as table:
                    writer = csv.writer(table, delimiter="," if format == "csv" else "\t")
                    writer.writerow(["filepath", "caption"])
                    writer.writerows([f"{stem}/{record['key']}.png", record["caption"]] for record in part)
    ending = {"webdataset": ".tar", "folder": ""}.get(format, f".{format}")
    return {"format": format, "shards": [str(folder / f"train-{shard}{ending}") for shard in range(NUM_SHARDS)]}


def overrides_of(args, folder):
    """What the options change in the config."""
    (given,) = read_json(args.config)["data"]["train"]
    source = SourceConfig(**{**given, "shards": str(args.config.resolve().parent / given["shards"])})
    made = [f"data.train={json.dumps([write_data(source, folder / 'data', args.format)])}"]
    # Numbers are drawn along the run, too.
    made += ["model.config.vision.dropout=0.1", "evaluation.0.every=7", "evaluation.1.every=10"]
    made += [f"optimizer={json.dumps({'kind': args.optimizer})}"] if args.optimizer else []
    made += ["ema={}"] if args.ema else []
    match args.loss:
        case "softmax":
            made += ['loss={"kind": "softmax"}', "model.config.logit_bias_init=null"]
        case "caption":
            made = [change for change in made if not change.startswith("evaluation")]
            made += ['loss={"kind": "caption"}', "model.config.text=null", "evaluation=[]"]
            made += [f"model.config.decoder={json.dumps(DECODER)}"]
        case "both":
            made += ["loss.caption_weight=1", f"model.config.decoder={json.dumps(DECODER)}"]
        case "distillation":
            model = resolve(read_config(TrainConfig, args.config))[0].model.config
            save_pretrained(folder / "teacher", model, init(model, jax.random.key(1)))
            made += [f"loss.distillation={json.dumps({'teacher': str(folder / 'teacher')})}"]
    return [*made, "train_samples=46080", "checkpoint.every_steps=5", "checkpoint.keep=2", *args.overrides]


def start(args, output, overrides, devices):
    """The processes of one start."""
    pairs = [f"output_dir={output}", *overrides]
    command = [str(Path(sys.executable).parent / "clip-train"), "run", str(args.config)]
    command += [word for pair in pairs for word in ("--set", pair)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = ["--coordinator", f"127.0.0.1:{listener.getsockname()[1]}", "--num-processes", str(args.processes)]
    return [
        subprocess.Popen(
            [*command, *([*place, "--process-id", str(i)] if args.processes > 1 else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for i in range(args.processes)
    ]


def end(processes, rng, longest, has_begun):
    """Let a start run for a while, then end it in one of several ways; when and how, and its processes' statuses."""
    began = time.monotonic()
    # Half of the starts are ended anywhere, the set-up too, and half once they train.
    if rng.random() < 0.5:
        while all(process.poll() is None for process in processes) and not has_begun():
            time.sleep(0.2)
    deadline = time.monotonic() + rng.uniform(0, longest)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(deadline - time.monotonic(), 0))
    number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
    chosen = rng.sample(processes, 1) if len(processes) > 1 and rng.random() < 0.5 else processes
    for process in chosen:
        process.send_signal(number)  # which does nothing to one that has ended
    for process in processes:
        try:
            process.wait(timeout=HANGS)
        except subprocess.TimeoutExpired:
            print(f"process {process.pid} hangs")
            process.kill()
            process.wait()
            raise
    how = f"{number.name} to {len(chosen)} of {len(processes)} after {deadline - began:4.1f} s"
    return how, [process.returncode for process in processes]


def finish(args, output, overrides, devices):
    """A start that runs to its end."""
    processes = start(args, output, overrides, devices)
    if any(process.wait() for process in processes):
        raise SystemExit(f"a start of {output} that nothing ended has failed")


def metrics_of(output):
    path = f"{output}/metrics.jsonl"
    if "://" in path:
        return bytes(read_object(path)) if list_objects(path) else b""
    return Path(path).read_bytes() if Path(path).exists() else b""


def rows_of(output):
    rows = [json.loads(line) for line in metrics_of(output).splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]


def results_of(output):
    path = f"{output}/results.json"
    results = json.loads(bytes(read_object(path)) if "://" in path else Path(path).read_bytes())
    # Each names its run.
    measured = [
        {name: value for name, value in found.items() if name != "pretrained"} for found in results["evaluation"]
    ]
    return measured, results["skipped_samples"]


def state_of(args, output, overrides):
    """All that a run's last checkpoint holds: the arrays by name, and the position in the data."""
    setup = prepare(*resolve(read_config(TrainConfig, args.config, [f"output_dir={output}", *overrides])))
    setup.pipeline.close()
    with Checkpoints(Output.checkpoints_of(str(output)), read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.abstract)
    leaves = jax.tree_util.tree_leaves_with_path(restored.state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, (restored.step, restored.cursor)


def compare(args, whole, killed, overrides):
    """What of two runs is the same, by name."""
    rows = rows_of(whole), rows_of(killed)
    same_steps = [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    if len(set(args.devices)) > 1:
        losses = [[row["loss"] for row in run if "loss" in row] for run in rows]
        return {"steps": same_steps, "losses to 1e-5": np.allclose(*losses, rtol=1e-5)}
    (arrays, place), (others, other_place) = (state_of(args, run, overrides) for run in (whole, killed))
    same = {name: np.array_equal(array, others[name]) for name, array in arrays.items()}
    print(f"{len(rows[0])} rows, {len(same)} arrays; skipped: {results_of(whole)[1]}")
    return {
        "rows": rows[0] == rows[1],
        **{part: all(same[name] for name in same if name.startswith(f".{part}")) for part in ("params", "opt_state")},
        **({"ema": all(same[name] for name in same if name.startswith(".ema"))} if args.ema else {}),
        "step and position in the data": place == other_place,
        "results": results_of(whole) == results_of(killed),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("examples/digits/config.json"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds of a start before it is ended")
    parser.add_argument("--set", action="append", dest="overrides", default=[], help="as of clip-train run")
    parser.add_argument("--format", choices=FORMATS, default="tfrecord", help="of the data")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="with its defaults")
    parser.add_argument("--loss", choices=LOSSES, default="sigmoid", help="both: sigmoid and captions")
    parser.add_argument("--ema", action="store_true", help="keep moving averages")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--devices", default="1", help="of a process; of several numbers each start takes the next")
    parser.add_argument("--to", metavar="ADDRESS", help="the killed run's place in a bucket: gs:// or s3://")
    args = parser.parse_args()
    args.devices = [int(number) for number in args.devices.split(",")]
    rng, devices = random.Random(args.seed), itertools.cycle(args.devices)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    whole, killed = folder / "whole", args.to or folder / "killed"
    overrides = overrides_of(args, folder)
    finish(args, whole, overrides, args.devices[0])

    for kill in range(args.kills):
        processes = start(args, killed, overrides, next(devices))
        before = metrics_of(killed)
        how, statuses = end(processes, rng, args.longest, lambda before=before: metrics_of(killed) != before)
        rows = f"{len(before.splitlines())} -> {len(rows_of(killed))}"
        print(f"{kill + 1:3}  {how}  status {statuses}  rows {rows}", flush=True)
    began = time.monotonic()
    finish(args, killed, overrides, next(devices))
    print(f"the last start ran to the end in {time.monotonic() - began:.0f} s")

    found = compare(args, whole, killed, overrides)
    print(", ".join(f"{name} {'the same' if same else 'DIFFER'}" for name, same in found.items()))
    if all(found.values()):
        shutil.rmtree(folder)
        return 0
    print(f"look at {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
