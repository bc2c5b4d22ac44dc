"""Kill a run anywhere, and compare what it becomes with the same run left alone: weights, losses, samples, seconds.

    python packages/clip-train/benchmarks/kill_anywhere.py [--rows once often elastic damaged] [--epochs 8]
    python packages/clip-train/benchmarks/kill_anywhere.py --rows open_clip --torch-python /path/to/venv/bin/python

Rows, all on the digits:

- `once`: one `kill -9` in the middle; `often`: twenty at random moments, between which it may get nowhere;
- `elastic`: two processes, then four, then one, each stopped by SIGTERM;
- `damaged`: some pictures are cut off, and the run is killed three times; against the same data left alone;
- `open_clip`: its own trainer with `--resume latest`, killed once in the middle of an epoch, and, because its order of
  samples is another at each start, left alone twice. That other environment has `open_clip_torch` and its training
  extra.

Samples are counted by the keys of the batches that the last weights have seen: lost are those that the run left alone
saw and this one did not, doubled those that it saw more often. Seconds are those of all starts beyond the run left
alone.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
NUM_TRAIN, BATCH = 1437, 128
TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 96, "layers": 4, "head_width": 24},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 2},
}


class Attempt:
    """Runs of one trainer in one place: starts it, ends it, and tells what came of it.

    Args:
        folder: a new one, for what is written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.starts, self.seconds = folder, 0, 0.0

    def commands(self, num_processes: int) -> list[list[str]]:
        """What each process of a start runs."""
        raise NotImplementedError

    def environment(self, num_processes: int) -> dict[str, str]:
        """What it runs in."""
        return {}

    def start(self, *, num_processes: int = 1, until=None, number: int = signal.SIGKILL) -> list[int]:
        """Run until `until()` is true, then send a signal to the last process; return how all ended."""
        began = time.monotonic()
        environment = os.environ | self.environment(num_processes)
        log = (self.folder / "log").open("a")
        processes = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            for command in self.commands(num_processes)
        ]
        while until is not None and not until() and all(process.poll() is None for process in processes):
            time.sleep(0.02)
        if until is not None and processes[-1].poll() is None:
            if number == signal.SIGKILL:  # with the processes that it started
                os.killpg(processes[-1].pid, number)
            else:
                processes[-1].send_signal(number)
        codes = [process.wait(timeout=7200) for process in processes]
        self.starts += 1
        self.seconds += time.monotonic() - began
        return codes

    def finish(self) -> Attempt:
        """Run to the end."""
        codes = self.start()
        assert codes == [0], f"{codes}: see {self.folder / 'log'}"
        return self

    def batches(self) -> dict[int, dict]:
        """By step what the last weights have seen: of each step the last start that came to it."""
        newest: dict[int, tuple[int, dict]] = {}
        for path in self.folder.glob("seen-*.jsonl"):
            start = int(path.stem.split("-")[1])
            for line in path.read_text().splitlines():
                seen = json.loads(line)
                step = seen["step"]
                if step not in newest or newest[step][0] < start:
                    newest[step] = (start, seen)
                elif newest[step][0] == start:  # another process's part of the batch
                    newest[step] = (start, {**seen, "keys": newest[step][1]["keys"] + seen["keys"]})
        return {step: seen for step, (_, seen) in newest.items()}

    def num_seen(self) -> int:
        """Batches so far, those that were seen again counted again."""
        return sum(len(path.read_bytes().splitlines()) for path in self.folder.glob("seen-*.jsonl"))

    def losses(self) -> list[float]:
        """Of each step."""
        return [seen["loss"] for _, seen in sorted(self.batches().items())]

    def weights(self) -> list[np.ndarray]:
        """At the end."""
        raise NotImplementedError


class Ours(Attempt):
    """`clip-train run` on the digits, or on other shards of them."""

    def __init__(self, folder: Path, samples: int, shards: str | None = None) -> None:
        super().__init__(folder)
        self.overrides = [f"output_dir={folder / 'run'}", f"train_samples={samples}", "evaluation=[]"]
        self.overrides += ["checkpoint.every_steps=10"]
        if shards is not None:
            self.overrides.append(f"data.train.0.shards={shards}")

    def commands(self, num_processes: int) -> list[list[str]]:
        run = ["run", str(DIGITS / "config.json"), *(w for pair in self.overrides for w in ("--set", pair))]
        if num_processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                where = f"127.0.0.1:{listener.getsockname()[1]}"
            run += ["--coordinator", where, "--num-processes", str(num_processes)]
        made = []
        for i in range(num_processes):
            seen = self.folder / f"seen-{self.starts:03}-{i}.jsonl"
            mine = ["--process-id", str(i)] if num_processes > 1 else []
            made.append([sys.executable, __file__, "--run", str(seen), *run, *mine])
        return made

    def environment(self, num_processes: int) -> dict[str, str]:
        if num_processes == 1:
            return {}
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}

    def losses(self) -> list[float]:
        from clip_train.jsonl import read_jsonl

        return [row["loss"] for row in read_jsonl(self.folder / "run" / "metrics.jsonl") if "loss" in row]

    def skipped(self) -> dict[str, int]:
        """Samples that were not used, by reason."""
        return json.loads((self.folder / "run" / "results.json").read_text())["skipped_samples"]

    def weights(self) -> list[np.ndarray]:
        import jax

        from clip_train import load_run

        return [np.asarray(leaf) for leaf in jax.tree.leaves(load_run(self.folder / "run")[1])]


def run_ours(seen: Path, arguments: list[str]) -> int:
    """`clip-train`, with the keys of every batch written to a file as its step begins."""
    from clip_train.cli import main
    from clip_train.watch import Watch

    remember = Watch.remember
    file = seen.open("w", buffering=1)

    def remembered(self, step, keys):
        file.write(json.dumps({"step": step, "keys": list(keys)}) + "\n")
        return remember(self, step, keys)

    Watch.remember = remembered
    return main(arguments)


class OpenClip(Attempt):
    """open_clip's trainer on the same pictures, as a WebDataset whose captions tell each from all others."""

    def __init__(self, folder: Path, python: str, data: Path, epochs: int) -> None:
        super().__init__(folder)
        self.python, self.data, self.epochs = python, data, epochs

    def commands(self, num_processes: int) -> list[list[str]]:
        seen = self.folder / f"seen-{self.starts:03}-0.jsonl"
        options = {
            "--train-data": f"{self.data}/{{0..3}}.tar",
            "--train-num-samples": NUM_TRAIN,
            "--dataset-type": "webdataset",
            "--model": "tiny",
            "--batch-size": BATCH,
            "--epochs": self.epochs,
            "--workers": 1,
            "--warmup": 10,
            "--lr": 1e-3,
            "--precision": "fp32",
            "--device": "cpu",
            "--logs": self.folder,
            "--name": "run",
            "--save-frequency": 1,
            "--zeroshot-frequency": 0,
            "--resume": "latest",
        }
        words = [str(word) for pair in options.items() for word in pair]
        return [[self.python, __file__, "--run-open-clip", str(seen), str(self.data), *words]]

    def weights(self) -> list[np.ndarray]:
        path, to = self.folder / "run" / "checkpoints" / f"epoch_{self.epochs}.pt", self.folder / "weights.npz"
        program = f"""
import numpy as np, torch
tensors = torch.load({str(path)!r}, map_location="cpu", weights_only=True)["state_dict"]
np.savez({str(to)!r}, **{{name: tensor.numpy() for name, tensor in tensors.items()}})
"""
        subprocess.run([self.python, "-c", program], check=True)
        return list(np.load(to).values())


def run_open_clip(seen: Path, data: Path, arguments: list[str]) -> None:
    """open_clip's own trainer, with the texts and the loss of every batch written to a file."""
    import open_clip
    import open_clip_train.main as trainer

    open_clip.add_model_config(data / "models")
    file = seen.open("w", buffering=1)
    train_one_epoch = trainer.train_one_epoch

    def recorded(model, data, loss, epoch, *others, **more):
        loader, batches = data["train"].dataloader, []

        class Recorder:
            num_batches, num_samples = loader.num_batches, loader.num_samples

            def __iter__(self):
                for batch in loader:
                    batches.append([" ".join(map(str, row)) for row in batch[1].tolist()])
                    yield batch

        def recorded_loss(**inputs):
            parts = loss(**inputs)
            step = epoch * loader.num_batches + len(batches)
            file.write(json.dumps({"step": step, "keys": batches[-1], "loss": sum(parts.values()).item()}) + "\n")
            return parts

        data["train"].dataloader = Recorder()
        try:
            return train_one_epoch(model, data, recorded_loss, epoch, *others, **more)
        finally:
            data["train"].dataloader = loader

    trainer.train_one_epoch = recorded
    sys.exit(trainer.main(arguments))


def write_data(folder: Path) -> tuple[str, list[str]]:
    """The digits with some pictures cut off as TFRecord, and as open_clip reads them; the keys of those cut off."""
    from clip_data import SourceConfig, read_records
    from clip_data.tfrecord import write_examples

    records = list(read_records(SourceConfig(format="tfrecord", shards=str(DIGITS / "shards" / "train-*.tfrecord"))))
    cut = records[50::200]
    damaged = [{"key": r.key, "webp": r.image[:20] if r in cut else r.image, "caption": r.caption} for r in records]
    write_examples(folder / "damaged.tfrecord", damaged)
    (folder / "models").mkdir()
    (folder / "models" / "tiny.json").write_text(json.dumps(TINY))
    for number in range(4):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for place, record in list(enumerate(records))[number::4]:
                for suffix, content in (("webp", record.image), ("txt", f"{record.caption} {place}".encode())):
                    member = tarfile.TarInfo(f"{place:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / "damaged.tfrecord"), [record.key for record in cut]


def row(what: str, whole: Attempt, other: Attempt, remark: str = "") -> None:
    """Print a line of the table."""
    pairs = list(zip(whole.weights(), other.weights(), strict=True))
    apart = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)
    equal = "bit for bit" if all(np.array_equal(a, b) for a, b in pairs) else f"no, up to {apart:.1e} apart"
    losses = list(zip(whole.losses(), other.losses(), strict=True))
    difference = max(abs(a - b) for a, b in losses)
    expected, found = (
        collections.Counter(key for seen in attempt.batches().values() for key in seen["keys"])
        for attempt in (whole, other)
    )
    lost, doubled = (expected - found).total(), (found - expected).total()
    same_order = all(sorted(s["keys"]) == sorted(other.batches()[step]["keys"]) for step, s in whole.batches().items())
    order = "same batches" if same_order else "other batches"
    seconds = f"{other.seconds - whole.seconds:+,.0f} of {whole.seconds:,.0f}"
    cells = (
        what + remark,
        equal,
        f"{difference:.1e}" if difference else "none",
        f"{lost}, {doubled}; {order}",
        seconds,
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = ("once", "often", "elastic", "damaged", "open_clip")
    parser.add_argument("--rows", nargs="+", choices=rows, default=list(rows[:4]))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20, help="of the row often")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--torch-python", help="of an environment with open_clip_torch, for the row open_clip")
    args = parser.parse_args()
    if "open_clip" in args.rows and args.torch_python is None:
        parser.error("--torch-python: an environment with open_clip_torch is needed")
    folder, rng = Path(tempfile.mkdtemp(prefix="kill-")), random.Random(args.seed)
    print(f"Runs and logs are in {folder}\n", flush=True)
    print(
        "| what is done to the run | weights equal | largest loss difference | samples lost, doubled | seconds more |"
    )
    print("|---|---|---|---|---|", flush=True)
    (folder / "data").mkdir()
    damaged, cut = write_data(folder / "data")
    steps = args.epochs * NUM_TRAIN // BATCH
    samples = steps * BATCH
    if set(args.rows) & {"once", "often", "elastic"}:
        whole = Ours(folder / "whole", samples).finish()
    if "once" in args.rows:
        run = Ours(folder / "once", samples)
        run.start(until=lambda: run.num_seen() > steps // 2)
        row("one `kill -9`", whole, run.finish())
    if "often" in args.rows:
        run = Ours(folder / "often", samples)
        for _ in range(args.kills):
            end = time.monotonic() + rng.uniform(0, 1.2 * whole.seconds)
            run.start(until=lambda end=end: time.monotonic() > end)
        row(f"{args.kills} × `kill -9` at random moments", whole, run.finish())
    if "elastic" in args.rows:
        run = Ours(folder / "elastic", samples)
        for num_processes, step in ((2, steps // 3), (4, 2 * steps // 3)):
            run.start(
                num_processes=num_processes, until=lambda step=step: len(run.losses()) > step, number=signal.SIGTERM
            )
        row("2 processes, then 4, then 1", whole, run.finish())
    if "damaged" in args.rows:
        alone = Ours(folder / "damaged-alone", samples, damaged).finish()
        run = Ours(folder / "damaged", samples, damaged)
        for part in (1, 2, 3):
            end = run.num_seen() + part * steps // 8
            run.start(until=lambda end=end: run.num_seen() > end)
        run.finish()
        trained = {key for seen in run.batches().values() for key in seen["keys"]}
        assert not trained & set(cut)
        assert run.skipped() == alone.skipped()
        remark = f": {len(cut)} of {NUM_TRAIN} pictures cut off, 3 × `kill -9`; skipped {run.skipped()}"
        row("damaged samples", alone, run, remark)
    if "open_clip" in args.rows:
        again, killed, alone = (
            OpenClip(folder / name, args.torch_python, folder / "data", args.epochs)
            for name in ("open_clip-again", "open_clip-killed", "open_clip")
        )
        alone.finish()
        per_epoch = -(-NUM_TRAIN // BATCH)
        killed.start(until=lambda: killed.num_seen() >= (args.epochs // 2) * per_epoch + per_epoch // 2)
        row("open_clip, left alone twice", alone, again.finish())
        row("open_clip with `--resume latest`, one `kill -9` in the middle of an epoch", alone, killed.finish())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run_ours(Path(sys.argv[2]), sys.argv[3:]))
    elif sys.argv[1:2] == ["--run-open-clip"]:
        run_open_clip(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
