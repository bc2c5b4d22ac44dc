"""What loading weights costs: its time over that of reading the bytes, and its peak of memory over the weights' size.

    python packages/clip-models/benchmarks/load.py [--preset vit-b-32] [--format huggingface] [--dtype float32]

The model is written to a temporary directory and read back, so the file is in the system's cache: what is measured is
the work. Each of several loads is in a process of its own, beside a plain read of the same file; times are of the
fastest of each, memory is what was resident at most beyond what it was before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def write(directory: str, preset: str, format: str) -> None:
    """Writes a model with random weights."""
    from dataclasses import replace

    import jax

    import clip_models

    config = clip_models.preset(preset)
    config = replace(config, preprocess=replace(config.preprocess, tokenizer=None))  # none is fetched
    params = clip_models.init(config, jax.random.key(0))
    clip_models.save_pretrained(directory, config, params, format=format)


def measure(directory: str, dtype: str) -> dict[str, float]:
    """Loads a model once: seconds of it and of reading the file, bytes of memory at most and of the file."""
    import jax
    import numpy as np

    from clip_models import load_config, load_pretrained
    from clip_models.formats.params_io import expected_shapes

    expected_shapes(load_config(directory))  # tracing is done once, however many models are loaded
    jax.device_put(np.zeros(3)).block_until_ready()
    path = next(Path(directory).glob("*.safetensors"))
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        size = len(file.read())
    reading = time.perf_counter() - start

    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    jax.block_until_ready(load_pretrained(directory, dtype=dtype)[1])
    loading = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"reading": reading, "loading": loading, "peak": max(peak, resident()) - before, "size": size}


def main() -> None:
    """Prints both ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="vit-b-32")
    parser.add_argument("--format", default="huggingface", choices=["clip-jax", "huggingface", "open_clip"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the parameters")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.dtype)))
        return
    with tempfile.TemporaryDirectory() as directory:
        write(directory, options.preset, options.format)
        command = [sys.executable, __file__, "--measure", directory, "--dtype", options.dtype]
        runs = [json.loads(subprocess.check_output(command).splitlines()[-1]) for _ in range(options.times)]
    loading, reading = (min(run[name] for run in runs) for name in ("loading", "reading"))
    weights = runs[0]["size"] * (0.5 if options.dtype == "bfloat16" else 1)
    peak = max(run["peak"] for run in runs)
    print(f"{options.preset}, {options.format}, {options.dtype}: {runs[0]['size'] / 2**20:.0f} MiB on disk")
    print(f"  loading {loading:.3f} s, reading {reading:.3f} s: {loading / reading:.2f} ×")
    print(f"  peak of memory {peak / 2**20:.0f} MiB: {peak / weights:.2f} × the weights")


if __name__ == "__main__":
    main()
