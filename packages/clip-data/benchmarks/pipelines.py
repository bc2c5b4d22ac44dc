"""Input pipelines on the same images: CPU time of all threads for each image, in steady state, and images a second.

    python benchmarks/pipelines.py [--images 2000] [ROW ...]

Peers that are not installed are left out: ``pip install tensorflow-cpu webdataset grain``. Every row runs in a process
of its own and tokenises where it is ours; none of the peers tokenises.
"""

import argparse
import collections
import importlib.util
import io
import itertools
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from clip_data import DataConfig, Pipeline, SourceConfig
from clip_data.tfrecord import write_examples

BATCH = 128
WORDS = "<pad> </s> <unk> a photo of number in the style day night blue red dog cat".split()  # noqa: SIM905
MEAN, STD = np.float32([0.48, 0.46, 0.41]), np.float32([0.27, 0.26, 0.28])


def make_pictures(count, size, form):
    """Smooth colour, edges and grain, of about the bytes of a photograph."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (9, 9, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
        for _ in range(6):
            top, left, height, width = rng.integers(0, size, 4)
            pixels[top : top + height, left : left + width] += rng.integers(-60, 60, 3, np.int16)
        pixels += rng.normal(0, 5, pixels.shape).astype(np.int16)
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, form, quality=90)
        yield out.getvalue()


def make_data(folder, count):
    """The same pictures as TFRecord and as tar, by kind."""
    rng = np.random.default_rng(1)
    for kind, size, form in (
        ("jpg256", 256, "JPEG"),
        ("jpg400", 400, "JPEG"),
        ("jpg1024", 1024, "JPEG"),
        ("webp256", 256, "WEBP"),
    ):
        pictures = list(make_pictures(50, size, form))
        records = [
            {"key": f"{n:08d}", "jpg": pictures[n % 50], "caption": " ".join(rng.choice(WORDS[3:], 12))}
            for n in range(count)
        ]
        for shard in range(4):
            write_examples(folder / f"{kind}-{shard}.tfrecord", records[shard::4])
            with tarfile.open(folder / f"{kind}-{shard}.tar", "w") as tar:
                for record in records[shard::4]:
                    for name, data in (("jpg", record["jpg"]), ("txt", record["caption"].encode())):
                        info = tarfile.TarInfo(f"{record['key']}.{name}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(special))


def ours(folder, kind, **options):
    def batches():
        source = SourceConfig(format="tfrecord", shards=str(folder / f"{kind}-*.tfrecord"))
        options.setdefault("image_size", 256 if kind.endswith("256") else 224)
        config = DataConfig(sources=(source,), tokenizer=str(folder / "tokenizer"), text_length=32, **options)
        with Pipeline(config, global_batch_size=BATCH) as pipeline:
            for batch in pipeline:
                yield batch.image

    return batches()


def images_of(folder, kind):
    from clip_data import read_records

    return [
        record.image
        for record in read_records(SourceConfig(format="tfrecord", shards=str(folder / f"{kind}-*.tfrecord")))
    ]


def bare(folder, kind, num_threads=1):
    """Nothing but the decoder: in one thread, or in two as ours, which shows what two busy cores do to each other."""
    import cv2
    import simplejpeg

    images = images_of(folder, kind)
    read = cv2.IMREAD_COLOR_RGB
    out = np.empty((2 * BATCH, 256, 256, 3), np.uint8)

    def decode(number):
        rows = out[number % 2 * BATCH :][:BATCH]
        for row, image in zip(rows, images[number * BATCH % (len(images) - BATCH) :], strict=False):
            if kind == "webp256":
                row[...] = cv2.imdecode(np.frombuffer(image, np.uint8), read)
            else:
                simplejpeg.decode_jpeg(image, buffer=row.reshape(-1))
        return rows

    if num_threads == 1:
        yield from map(decode, itertools.count())
    with ThreadPoolExecutor(num_threads) as pool:
        under_way = collections.deque(pool.submit(decode, number) for number in range(num_threads))
        for number in itertools.count(num_threads):
            yield under_way.popleft().result()
            under_way.append(pool.submit(decode, number))


def tf_dataset(folder, kind, *, resized, permuted=False):
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    files = sorted(map(str, folder.glob(f"{kind}-*.tfrecord")))

    def prepare(record):
        feature = {"jpg": tf.io.FixedLenFeature([], tf.string), "caption": tf.io.FixedLenFeature([], tf.string)}
        parsed = tf.io.parse_single_example(record, feature)
        image = tf.io.decode_image(parsed["jpg"], 3, expand_animations=False)
        if resized:
            image = tf.image.resize(image, (224, 224), "bicubic", antialias=True)
            image = (image / 255 - MEAN) / STD
        else:
            image.set_shape((256, 256, 3))
        return image, parsed["caption"]

    data = tf.data.TFRecordDataset(files)
    if permuted:  # a block is read whole, its records gathered in the order of a permutation
        block = sum(1 for _ in data)
        data = data.batch(block).map(lambda records: tf.gather(records, np.random.default_rng(0).permutation(block)))
        data = data.unbatch()
    data = data.repeat().map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    for image, _ in data.batch(BATCH).prefetch(2):
        yield np.asarray(image)


def with_pillow(image, size=224, normalised=True):
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return (pixels.astype(np.float32) / 255 - MEAN) / STD if normalised else pixels


def webdataset(folder, kind):
    import webdataset as wds

    shards = sorted(map(str, folder.glob(f"{kind}-*.tar")))
    data = wds.WebDataset(shards, shardshuffle=False).repeat().to_tuple("jpg", "txt")
    images = []
    for image, _ in data:
        images.append(with_pillow(image))
        if len(images) == BATCH:
            yield np.stack(images)
            images.clear()


def grain(folder, kind):
    import grain.python as pygrain

    data = pygrain.MapDataset.source(images_of(folder, kind)).shuffle(seed=0).map(with_pillow).repeat()
    yield from data.to_iter_dataset(pygrain.ReadOptions(num_threads=2)).batch(BATCH)


ROWS = {
    "256 px JPEG: clip_data, u8 and tokens": ("", lambda d: ours(d, "jpg256")),
    "256 px JPEG: clip_data, executor=tensorflow": (
        "tensorflow",
        lambda d: ours(d, "jpg256", executor="tensorflow", strict=False),
    ),
    "256 px JPEG: bare simplejpeg": ("", lambda d: bare(d, "jpg256")),
    "256 px JPEG: bare simplejpeg, two threads": ("", lambda d: bare(d, "jpg256", 2)),
    "256 px JPEG: tf.data, bicubic f32": ("tensorflow", lambda d: tf_dataset(d, "jpg256", resized=True)),
    "256 px JPEG: tf.data, decode only": ("tensorflow", lambda d: tf_dataset(d, "jpg256", resized=False)),
    "256 px JPEG: tf.data, decode only, permuted block": (
        "tensorflow",
        lambda d: tf_dataset(d, "jpg256", resized=False, permuted=True),
    ),
    "256 px JPEG: clip_data, 2 processes": ("", lambda d: ours(d, "jpg256", num_workers=2)),
    "256 px WebP: clip_data, u8 and tokens": ("", lambda d: ours(d, "webp256")),
    "256 px WebP: bare OpenCV": ("", lambda d: bare(d, "webp256")),
    "256 px WebP: bare OpenCV, two threads": ("", lambda d: bare(d, "webp256", 2)),
    "400 px JPEG to 224: clip_data, u8 and tokens": ("", lambda d: ours(d, "jpg400")),
    "400 px JPEG to 224: webdataset, Pillow, f32": ("webdataset", lambda d: webdataset(d, "jpg400")),
    "400 px JPEG to 224: grain, Pillow, f32": ("grain", lambda d: grain(d, "jpg400")),
    "400 px JPEG to 224: tf.data, bicubic f32": ("tensorflow", lambda d: tf_dataset(d, "jpg400", resized=True)),
    "1024 px JPEG to 224: clip_data": ("", lambda d: ours(d, "jpg1024")),
    "1024 px JPEG to 224: clip_data, not scaled": ("", lambda d: ours(d, "jpg1024", scaled_decoding=False)),
}


def cpu_seconds():
    own, children = resource.getrusage(resource.RUSAGE_SELF), Path("/proc/self/task").parent
    seconds = own.ru_utime + own.ru_stime
    ticks = 100  # of the kernel's clock; other processes that decode are not waited for, so /proc tells
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == int(children.resolve().name):
            seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def measure(row, folder, num_images):
    batches = ROWS[row][1](folder)
    for _ in range(4):
        next(batches)
    begin, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while count < num_images:
        count += len(next(batches))
    wall = time.perf_counter() - begin
    print(json.dumps({"cpu_ms": (cpu_seconds() - cpu) / count * 1e3, "images_per_second": count / wall}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="rows whose name holds one of these; all without")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.data, arguments.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), 800)
        print(f"| {'':52} | CPU ms/image | images/s |\n|{'-' * 54}|-------------:|---------:|")
        for row, (needs, _) in ROWS.items():
            if needs and importlib.util.find_spec(needs) is None:
                continue
            if arguments.rows and not any(part in row for part in arguments.rows):
                continue
            command = [sys.executable, __file__, "--measure", row, "--data", folder, "--images", str(arguments.images)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                print(f"| {row:52} | failed: {done.stderr.strip().splitlines()[-1]:.60} |")
                continue
            result = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"| {row:52} | {result['cpu_ms']:12.3f} | {result['images_per_second']:8.0f} |", flush=True)


if __name__ == "__main__":
    main()
