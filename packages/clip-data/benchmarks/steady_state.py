"""What a long run costs beside decoding: the first batch after a seek, memory over epochs, decoding processes.

python benchmarks/steady_state.py [seek] [memory] [processes]
"""

import argparse
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pipelines import make_pictures

from clip_data import DataConfig, Pipeline, SourceConfig, write_shards
from clip_data.tfrecord import write_examples

BATCH = 128
NUM_SHARDS, NUM_RECORDS, BLOCK_SHARDS = 40, 400, 8
SECONDS_IN_LINE = 4e-3
_line = threading.Lock()


def make_data(folder):
    """The same records as TFRecord and as Parquet."""
    pictures = list(make_pictures(50, 256, "JPEG"))
    (folder / "tfrecord").mkdir()
    for shard in range(NUM_SHARDS):
        numbers = range(shard * NUM_RECORDS, (shard + 1) * NUM_RECORDS)
        records = [{"key": f"{n:08d}", "jpg": pictures[n % 50], "caption": f"number {n}"} for n in numbers]
        write_examples(folder / "tfrecord" / f"{shard:05d}.tfrecord", records)
    source = SourceConfig(format="tfrecord", shards=str(folder / "tfrecord" / "*.tfrecord"))
    write_shards(source, str(folder / "parquet"), format="parquet", samples_per_shard=NUM_RECORDS)


def pipeline(folder, form, **options):
    source = SourceConfig(format=form, shards=str(folder / form / f"*.{form}"))
    options = {"image_size": 256, "tokenizer": None, "text_length": 1, "block_shards": BLOCK_SHARDS, **options}
    return Pipeline(DataConfig(sources=(source,), **options), global_batch_size=BATCH)


def first_batch(folder, form, share):
    """Seconds from nothing to the first batch, and of these from the seek on."""
    begin = time.perf_counter()
    with pipeline(folder, form) as batches:
        position = int(share * batches.num_samples) // BATCH * BATCH
        opened = time.perf_counter()
        batches.seek({**batches.cursor(), "position": position})
        next(batches)
        end = time.perf_counter()
    return end - begin, end - opened


def seek(folder):
    print("| first batch, ms | at 5 % | at 95 % | ratio | with opening, 5 % | 95 % |")
    print("|---|--:|--:|--:|--:|--:|")
    for form in ("tfrecord", "parquet"):
        first_batch(folder, form, 0.5)  # the files are in the page cache after it
        times = {0.05: [], 0.95: []}
        for share in [0.05, 0.95] * 15:
            times[share].append(first_batch(folder, form, share))
        (whole5, seek5), (whole95, seek95) = (
            [statistics.median(column) * 1e3 for column in zip(*times[share], strict=True)] for share in times
        )
        print(f"| {form} | {seek5:.0f} | {seek95:.0f} | {seek95 / seek5:.2f} | {whole5:.0f} | {whole95:.0f} |")


def resident():
    """Megabytes of this process that are in memory: all, and those that are no pages of a file."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) / 1e3 for name in ("VmRSS", "RssAnon")]


def memory_of(folder, form):
    """Memory after every fourth batch of three epochs, and before the first."""
    before = resident()
    with pipeline(folder, form, num_epochs=3) as batches:
        samples = [resident() for number, _ in enumerate(batches) if number % 4 == 0]
    print(json.dumps([before, samples]))


def memory(folder):
    print("\n| memory, MB | before | block | limit | highest | highest without pages of files, epoch 1 | 2 | 3 |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for form in ("tfrecord", "parquet"):
        command = [sys.executable, __file__, "--memory-of", form, "--data", str(folder)]
        before, samples = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        block = sum(path.stat().st_size for path in (folder / form).iterdir()) / 1e6 * BLOCK_SHARDS / NUM_SHARDS
        limit = block + 3 * BATCH * 256 * 256 * 3 / 1e6 + 300
        third = len(samples) // 3
        epochs = [max(own for _, own in samples[i * third : (i + 1) * third]) for i in range(3)]
        highest = max(whole for whole, _ in samples)
        numbers = " | ".join(f"{number:.0f}" for number in [before[0], block, limit, highest, *epochs])
        print(f"| {form} | {numbers} |")


def wait_in_line(record):
    """A decoder's cost that the threads of one process pay one after the other, as they do for Python's lock."""
    with _line:
        time.sleep(SECONDS_IN_LINE)
    return record


def processes(folder):
    from steady_state import wait_in_line as transform  # by a name that the other processes can import

    print("\n| decoding processes | images/s | order |\n|---|--:|---|")
    for num_workers in (1, 2, 4):
        options = {"image_size": 32, "num_workers": num_workers, "num_threads": 2 * num_workers}
        with pipeline(folder, "tfrecord", transform=transform, **options) as batches:
            keys = [key for batch in itertools.islice(batches, 4) for key in batch.key]
            begin, count = time.perf_counter(), 0
            while count < 8 * BATCH * num_workers:
                count += len(next(batches))
            rate = count / (time.perf_counter() - begin)
        print(f"| {num_workers} | {rate:.0f} | {hashlib.sha256(''.join(keys).encode()).hexdigest()[:8]} |", flush=True)


PARTS = {"seek": seek, "memory": memory, "processes": processes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of " + ", ".join(PARTS))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of(arguments.data, arguments.memory_of)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for part in arguments.parts or PARTS:
            PARTS[part](Path(folder))


if __name__ == "__main__":
    main()
