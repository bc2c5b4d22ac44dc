"""What `clip-train embed` loses against the bare model: its images a second over those of inference alone.

    python packages/clip-train/benchmarks/embed.py [--preset vit-b-32] [--batch-size 32] [--batches 8] [--rounds 3]

Both run in one process, in turns, with the same model and as many batches. Bare, it sees one batch that lies on the
device; `embed` reads JPEGs of 512 by 384 pixels from TFRecords, decodes and resizes them, and writes Parquet, its start
and end included. By the wall it is the ratio that a user sees; CPU time is what other work disturbs least where the
processor is the device too, and holds what decoding costs.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import jax
import numpy as np

from clip_data import Pipeline, SourceConfig
from clip_data.tfrecord import write_examples
from clip_models import encode_image, init, preset
from clip_sharding import MeshConfig, make_mesh
from clip_train.embed import embed
from clip_train.evaluate import Encoders
from clip_train.inputs import image_arrays, image_inputs
from clip_train.open_model import OpenModel

NUM_PICTURES = 64


def write_pictures(path, num):
    """Records of smooth pictures with some noise, which compress as photographs do."""
    rng, jpegs = np.random.default_rng(0), []
    for _ in range(min(num, NUM_PICTURES)):
        coarse = cv2.resize(
            rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (512, 384), interpolation=cv2.INTER_CUBIC
        )
        noisy = np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    write_examples(
        path, [{"key": f"{n:06d}", "jpg": jpegs[n % len(jpegs)], "caption": "a picture"} for n in range(num)]
    )


def timed(work):
    """Seconds by the wall and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="vit-b-32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config, mesh = preset(options.preset), make_mesh(MeshConfig())
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    model = OpenModel(name=options.preset, config=config, params=params, encoders=Encoders(config, mesh))
    num = options.batch_size * options.batches
    bare = jax.jit(lambda params, arrays: encode_image(config, params, **image_inputs(config, arrays)))
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "0.tfrecord", num)
        source = SourceConfig(format="tfrecord", shards=f"{folder}/*.tfrecord")
        data = model.data(source, tokenizer=None, shuffle=False, num_epochs=1)
        with Pipeline(data, global_batch_size=options.batch_size) as pipeline:
            batch = next(pipeline)
        arrays = jax.device_put(image_arrays(batch))

        def run_bare():
            jax.block_until_ready([bare(params, arrays) for _ in range(options.batches)])

        numbers = itertools.count()

        def run_embed():
            to = Path(folder) / f"out-{next(numbers)}"
            assert list(embed(model, source, to, batch_size=options.batch_size)) == [num]

        jax.block_until_ready(bare(params, arrays))
        model.encoders.images(params, batch)
        ratios = []
        for _ in range(options.rounds):
            alone, embedding = timed(run_bare), timed(run_embed)
            ratios.append(alone / embedding)
            rates = ", ".join(f"{num / seconds:.1f}" for seconds in (alone[0], embedding[0]))
            print(f"images a second, bare and embed: {rates}; ratio {ratios[-1][0]:.3f} wall, {ratios[-1][1]:.3f} CPU")
    wall, cpu = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
    print(f"{options.preset} on {jax.devices()[0].device_kind}, median: {wall:.3f} by the wall, {cpu:.3f} by CPU time")


if __name__ == "__main__":
    main()
