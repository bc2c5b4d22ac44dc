"""Pipelines side by side: CPU time for an image, size of the state, exactness of resuming, samples kept under faults.

    python benchmarks/peers.py [--images 1000] [NAME ...]

The same 400 px JPEGs are stored in each one's format: TFRecord, tar, ArrayRecord, MDS. Peers that are not installed are
left out: ``pip install tensorflow-cpu webdataset grain mosaicml-streaming megatron-energon``. Those that have a way to
go on after an error are told to. Ours yields uint8 of 224 px, the others float32 by Pillow; tf.data resizes by itself.

A fault hits one of 4 shards of 100 samples. A star: what was delivered includes the damaged picture.
"""

import argparse
import importlib.util
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from pipelines import MEAN, STD, cpu_seconds, make_pictures, with_pillow

NUM_SHARDS, NUM_RECORDS, BATCH = 4, 100, 20
VICTIM = 110  # the sample that a fault hits: in the second shard, the first with its picture


class ClipData:
    needs = "clip_data"
    extension = "tfrecord"

    def write(self, path, records):
        from clip_data.tfrecord import write_examples

        write_examples(path, [{"key": key, "jpg": image, "caption": key} for key, image in records])

    def open(self, folder, state=None, *, repeat=False):
        from clip_data import DataConfig, Pipeline, SourceConfig

        source = SourceConfig(format="tfrecord", shards=tuple(shards(folder, self)))
        options = {"num_epochs": None} if repeat else {"shuffle": False, "num_epochs": 1}
        config = DataConfig(sources=(source,), image_size=224, tokenizer=None, text_length=1, **options)
        self.pipeline = Pipeline(config, global_batch_size=BATCH)
        if state is not None:
            self.pipeline.seek(json.loads(state))
        for batch in self.pipeline:
            yield [key for key, real in zip(batch.key, batch.mask, strict=True) if real], batch.image[batch.mask]

    def state(self):
        return json.dumps(self.pipeline.cursor()).encode()


class TfData:
    needs = "tensorflow"
    extension = "tfrecord"
    write = ClipData.write

    def open(self, folder, state=None, *, repeat=False):
        import tensorflow as tf

        def prepare(record):
            features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("key", "jpg")}
            parsed = tf.io.parse_single_example(record, features)
            image = tf.image.resize(tf.io.decode_jpeg(parsed["jpg"], 3), (224, 224), "bicubic", antialias=True)
            return parsed["key"], (image / 255 - MEAN) / STD

        data = tf.data.TFRecordDataset(shards(folder, self))
        data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
        data = (data.repeat() if repeat else data).batch(BATCH).prefetch(2)
        self.iterator = iter(data)
        if state is not None:
            with tempfile.TemporaryDirectory() as place:
                for name, content in pickle.loads(state).items():
                    (Path(place) / name).write_bytes(content)
                tf.train.Checkpoint(iterator=self.iterator).read(f"{place}/state")
        for keys, images in self.iterator:
            yield [key.decode() for key in keys.numpy()], images.numpy()

    def state(self):
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as place:
            tf.train.Checkpoint(iterator=self.iterator).write(f"{place}/state")
            return pickle.dumps({path.name: path.read_bytes() for path in Path(place).iterdir()})


class WebDataset:
    needs = "webdataset"
    extension = "tar"

    def write(self, path, records):
        with tarfile.open(path, "w") as file:
            for key, image in records:
                for extension, data in (("jpg", image), ("txt", key.encode())):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))

    def open(self, folder, state=None, *, repeat=False):
        import webdataset as wds

        data = wds.WebDataset(shards(folder, self), shardshuffle=False, handler=wds.ignore_and_continue)
        data = data.map(lambda sample: (sample["__key__"], with_pillow(sample["jpg"])), handler=wds.ignore_and_continue)
        yield from _batched(data.repeat() if repeat else data)

    def state(self):
        return None


class Grain:
    needs = "grain"
    extension = "array_record"

    def write(self, path, records):
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for key, image in records:
            writer.write(key.encode() + image)
        writer.close()

    def open(self, folder, state=None, *, repeat=False):
        import grain.python as pygrain

        source = pygrain.ArrayRecordDataSource(shards(folder, self))
        data = pygrain.MapDataset.source(source).map(lambda record: (record[:8].decode(), with_pillow(record[8:])))
        options = pygrain.ReadOptions(num_threads=2)
        self.iterator = iter((data.repeat() if repeat else data).to_iter_dataset(options).batch(BATCH))
        if state is not None:
            self.iterator.set_state(json.loads(state))
        for keys, images in self.iterator:
            yield list(keys), images

    def state(self):
        return json.dumps(self.iterator.get_state()).encode()


class MosaicStreaming:
    needs = "streaming"
    extension = "mds"

    def write_all(self, folder, shards):
        from streaming import MDSWriter

        limit = 1 << 30  # shards end where they are told to
        with MDSWriter(out=str(folder), columns={"key": "str", "jpg": "bytes"}, size_limit=limit) as writer:
            for records in shards:
                for key, image in records:
                    writer.write({"key": key, "jpg": image})
                writer.flush_shard()
                writer._reset_cache()

    def open(self, folder, state=None, *, repeat=False):
        from streaming import StreamingDataLoader, StreamingDataset

        class Decoded(StreamingDataset):
            def __getitem__(self, at):
                sample = super().__getitem__(at)
                return sample["key"], with_pillow(sample["jpg"])

        data = Decoded(local=str(folder), shuffle=False, batch_size=BATCH)
        self.loader = StreamingDataLoader(
            data, batch_size=BATCH, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True))
        )
        if state is not None:
            self.loader.load_state_dict(pickle.loads(state))
        while True:
            for keys, images in self.loader:
                yield list(keys), np.stack(images)
            if not repeat:
                return

    def state(self):
        return pickle.dumps(self.loader.state_dict())


class Energon:
    needs = "megatron.energon"
    extension = "tar"
    write = WebDataset.write

    def finish(self, folder):
        from megatron.energon.flavors import BaseWebdatasetFactory

        names = sorted(path.name for path in folder.glob("*.tar"))
        BaseWebdatasetFactory.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)
        (folder / ".nv-meta" / "dataset.yaml").write_text(
            "sample_type:\n  __module__: megatron.energon\n  __class__: CaptioningSample\n"
            "field_map:\n  image: jpg\n  caption: txt\n"
        )

    def open(self, folder, state=None, *, repeat=False):
        from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset, stateless

        class Encoder(DefaultTaskEncoder):
            decoder = None

            @stateless
            def encode_sample(self, sample):
                image = sample.image if isinstance(sample.image, bytes) else bytes(sample.image)
                return sample.__key__.rpartition("/")[2], with_pillow(image)

            def batch(self, samples):
                return [key for key, _ in samples], np.stack([image for _, image in samples])

        data = get_train_dataset(
            folder,
            worker_config=WorkerConfig.default_worker_config(0),
            batch_size=BATCH,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            task_encoder=Encoder(),
            repeat=repeat,
        )
        self.loader = get_savable_loader(data)
        if state is not None:
            self.loader.restore_state_rank(pickle.loads(state))
        yield from self.loader

    def state(self):
        return pickle.dumps(self.loader.save_state_rank())


def shards(folder, peer):
    """The shards by name, whether they are there or not."""
    return [str(folder / f"{number:05d}.{peer.extension}") for number in range(NUM_SHARDS)]


def _batched(pairs):
    keys, images = [], []
    for key, image in pairs:
        keys.append(key)
        images.append(image)
        if len(keys) == BATCH:
            yield keys, np.stack(images)
            keys, images = [], []
    if keys:
        yield keys, np.stack(images)


PEERS = {
    "clip-data": ClipData,
    "tf.data": TfData,
    "webdataset": WebDataset,
    "grain, ArrayRecord": Grain,
    "MosaicML Streaming": MosaicStreaming,
    "Energon": Energon,
}


def spoil_image(records, folder, peer):
    records[VICTIM] = (records[VICTIM][0], b"<html>not found</html>")


def empty_image(records, folder, peer):
    records[VICTIM] = (records[VICTIM][0], b"")


def bomb(records, folder, peer):
    """A PNG of 1,600 megapixels, as its header says, of which nothing follows."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    header = b"IHDR" + struct.pack(">II", 40_000, 40_000) + data.getvalue()[24:29]
    png = data.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + data.getvalue()[33:]
    records[VICTIM] = (records[VICTIM][0], png)


def flip_byte(records, folder, peer):
    path, image = _shard(folder, peer), records[VICTIM][1]
    data = bytearray(path.read_bytes())
    at = data.find(image[len(image) // 2 :][:60])  # pictures differ there, and in their tables they do not
    if at < 0:
        raise ValueError("the picture is not stored as it is")
    data[at] ^= 0x10
    path.write_bytes(data)


def flip_length(records, folder, peer):
    """A byte of where a record begins or ends, after the first ten of its shard."""
    path, row = _shard(folder, peer), VICTIM % NUM_RECORDS
    data, at = bytearray(path.read_bytes()), 0
    if peer.extension == "tar":
        with tarfile.open(path) as file:
            at = file.getmember(f"{VICTIM:08d}.jpg").offset + 130  # a digit of the size
    elif peer.extension == "tfrecord":
        for _ in range(row):
            at += 16 + struct.unpack_from("<Q", data, at)[0]
    elif peer.extension == "mds":
        at = 4 + 4 * row + 1  # of the index of samples
    else:
        at = data.find(records[VICTIM][1][:200]) - 30  # in the header of the record's chunk
    data[at] ^= 0x10 if peer.extension != "tar" else 0x01
    path.write_bytes(data)


def same_key(records, folder, peer):
    records[VICTIM] = (records[VICTIM - 1][0], records[VICTIM][1])


def missing(records, folder, peer):
    _shard(folder, peer).unlink()


def cut_short(records, folder, peer):
    path = _shard(folder, peer)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(records, folder, peer):
    _shard(folder, peer).write_bytes(b"")


def _shard(folder, peer):
    return sorted(folder.glob(f"*.{peer.extension}"))[VICTIM // NUM_RECORDS]


FAULTS = {
    "picture is HTML": (spoil_image, None),
    "empty picture": (empty_image, None),
    "bomb": (bomb, None),
    "flipped byte": (None, flip_byte),
    "flipped length": (None, flip_length),
    "key of the one before": (same_key, None),
    "cut shard": (None, cut_short),
    "empty shard": (None, empty),
    "missing shard": (None, missing),
}


def write(peer, folder, change=None, spoil=None):
    pictures = list(make_pictures(50, 400, "JPEG"))
    records = [(f"{n:08d}", pictures[n % 50]) for n in range(NUM_SHARDS * NUM_RECORDS)]
    if change:
        change(records, folder, peer)
    shards = [records[n : n + NUM_RECORDS] for n in range(0, len(records), NUM_RECORDS)]
    if hasattr(peer, "write_all"):
        peer.write_all(folder, shards)
    else:
        for number, shard in enumerate(shards):
            peer.write(folder / f"{number:05d}.{peer.extension}", shard)
    if hasattr(peer, "finish"):
        peer.finish(folder)
    if spoil:
        spoil(records, folder, peer)


def speed(peer, folder, num_images):
    write(peer, folder)
    batches = peer.open(folder, repeat=True)
    for _ in range(4):
        next(batches)
    begin, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while count < num_images:
        count += len(next(batches)[0])
    return [(cpu_seconds() - cpu) / count * 1e3, count / (time.perf_counter() - begin)]


def resume(peer, folder):
    write(peer, folder)
    batches = peer.open(folder)
    for _ in range(7):
        next(batches)
    state = peer.state()
    if state is None:
        return [None, "no"]
    expected = [next(batches) for _ in range(5)]
    again = PEERS_BY_TYPE[type(peer)]().open(folder, state)
    found = [next(again) for _ in range(5)]
    same = all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(expected, found, strict=True))
    return [len(state), "yes" if same else "no"]


def kept(peer, folder, fault):
    write(peer, folder, *FAULTS[fault])
    keys, error = Counter(), ""
    try:
        for names, _ in peer.open(folder):
            keys.update(names)
    except Exception as raised:  # what the table is about
        error = f", then {type(raised).__name__}"
    star = "*" if fault == "flipped byte" and f"{VICTIM:08d}" in keys else ""
    num_kept = keys.total() if fault == "key of the one before" else len(keys)
    return f"{num_kept}{star}{error}"


PEERS_BY_TYPE = {kind: kind for kind in PEERS.values()}


def ask(name, what, num_images):
    """Answers one question in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--answer", name, what, folder, "--images", str(num_images)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return "hangs"
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if not lines:
        return "fails: " + (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:50]
    return json.loads(lines[-1].removeprefix("ANSWER "))


def answer(name, what, folder, num_images):
    peer, folder = PEERS[name](), Path(folder)
    if what == "speed":
        result = speed(peer, folder, num_images)
    else:
        result = resume(peer, folder) if what == "resume" else kept(peer, folder, what)
    sys.stdout.write(f"ANSWER {json.dumps(result)}\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of " + ", ".join(PEERS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--answer", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer(*arguments.answer, arguments.images)
        return
    total = NUM_SHARDS * NUM_RECORDS
    print(f"| kept of {total} | CPU ms/image | state, bytes | resumes exactly | {' | '.join(FAULTS)} |")
    print(f"|---|--:|--:|---|{'--:|' * len(FAULTS)}")
    for name, kind in PEERS.items():
        try:
            if importlib.util.find_spec(kind.needs) is None or (arguments.names and name not in arguments.names):
                continue
        except ModuleNotFoundError:
            continue
        fast, again = ask(name, "speed", arguments.images), ask(name, "resume", 0)
        cpu = f"{fast[0]:.2f}" if isinstance(fast, list) else fast
        size, exact = (
            ("-" if again[0] is None else f"{again[0]:,}", again[1]) if isinstance(again, list) else (again, "")
        )
        cells = [ask(name, fault, 0) for fault in FAULTS]
        print(f"| {name} | {cpu} | {size} | {exact} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
