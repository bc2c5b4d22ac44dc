"""Retrieval's metrics both ways over many pictures and texts: seconds, and the most memory of the process.

python packages/clip-train/benchmarks/ranks.py [--images 5000] [--captions 5] [--width 512]
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from clip_train.evaluate.retrieval import RECALL_AT
from clip_train.ranking import ranking_metrics


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="of each picture")
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(args.images, args.width)).astype(np.float32))
    own = np.repeat(np.arange(args.images), args.captions)
    texts = unit(images[own] + 0.2 * rng.normal(size=(len(own), args.width)).astype(np.float32))
    everything = np.arange(args.images)
    began, cpu_began = time.perf_counter(), time.process_time()
    found = [
        ranking_metrics(images, texts, lambda rows: everything[rows, None] == own, RECALL_AT),
        ranking_metrics(texts, images, lambda rows: own[rows, None] == everything, RECALL_AT),
    ]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{args.images:,} × {len(own):,} of {args.width}: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU, {peak:.2f} GiB"
    )
    print(", ".join(f"{way['recall@1']:.3f}" for way in found), "recall@1 of texts and of pictures")


if __name__ == "__main__":
    main()
