import json
import subprocess
import sys
import textwrap

import pytest

from clip_data import Pipeline
from clip_data.tfdata import refusals
from clip_data.tfrecord import write_examples

# Run in one process of its own: tensorflow's import takes seconds and warns.
SCRIPT = textwrap.dedent("""
    import itertools, json, sys
    import numpy as np
    from clip_data import DataConfig, Pipeline, SourceConfig

    def make(executor, index=0, count=1, patterns=sys.argv[2:3], **options):
        sources = tuple(SourceConfig(format="tfrecord", shards=pattern) for pattern in patterns)
        options = {"image_size": (24, 32), "tokenizer": sys.argv[1], "text_length": 8, "block_shards": 2, **options}
        config = DataConfig(sources=sources, strict=False, max_bad_fraction=1.0, executor=executor, **options)
        return Pipeline(config, global_batch_size=20, process_index=index, process_count=count)

    def compare(left, right):
        assert len(left) == len(right)
        for a, b in zip(left, right):
            assert a.key == b.key and a.caption == b.caption
            for name in ("mask", "image_ids", "text_ids", "label", "input_ids"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            off.append(int(np.abs(a.image.astype(int) - b.image.astype(int)).max()))

    off = []
    for options in ({"num_epochs": 2}, {"shuffle": False, "num_epochs": 1}):
        with make("threads", **options) as threads, make("tensorflow", **options) as tensorflow:
            expected = list(threads)
            got, cursor = [next(tensorflow), next(tensorflow)], tensorflow.cursor()
            compare(got, expected[:2])
            got += tensorflow
            compare(got, expected)
            assert tensorflow.faults == threads.faults, (tensorflow.faults, threads.faults)
            counts = dict(threads.faults)
            tensorflow.seek(json.loads(json.dumps(cursor)))
            compare(list(tensorflow), expected[2:])
            threads.seek(cursor)
            compare(list(threads), got[2:])
    for index in range(2):
        with make("threads", index, 2) as threads, make("tensorflow", index, 2) as tensorflow:
            compare(list(itertools.islice(tensorflow, 3)), list(itertools.islice(threads, 3)))

    import tensorflow as tf
    pipeline = make("tensorflow", patterns=sys.argv[3:])
    preparer, left = pipeline._executor._preparer, []
    pipeline._executor._preparer = type("Counting", (), {
        "stored": preparer.stored, "look_ahead": preparer.look_ahead, "remarks": preparer.remarks,
        "config": preparer.config,
        "__call__": lambda self, *rest: left.append(rest[0]) or preparer(*rest),
    })()
    with make("threads", patterns=sys.argv[3:]) as threads:
        compare(list(itertools.islice(pipeline, 3)), list(itertools.islice(threads, 3)))
    devices = [device.device_type for device in tf.config.get_visible_devices()]
    print(json.dumps({"off": max(off), "faults": counts, "left": left, "devices": devices}))
    # The pipeline is not closed: the process ends all the same.
""")


@pytest.fixture
def photos(encode, examples):
    """Makes examples n to m with JPEGs of 32 x 24 pixels that are not flat."""
    import numpy as np

    def photos(first, last):
        for n, example in enumerate(examples(first, last), first):
            del example["webp"]
            pixels = np.random.default_rng(n).integers(0, 256, (4, 4, 3), np.uint8).repeat(6, 0).repeat(8, 1)
            yield {"jpg": encode(pixels, form="JPEG", quality=80), **example}

    return photos


def test_the_same_as_the_threads(tmp_path, photos, encode, tokenizer_dir):
    pytest.importorskip("tensorflow", reason="clip-data[tensorflow]")
    records = list(photos(0, 60))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    records[3]["jpg"] = records[3]["jpg"][:-200]  # cut short
    records[5]["caption"] = ""
    records[7]["caption"] = b"caf\xe9"
    records[9]["jpg"] = b"<html>"
    records[11]["jpg"] = encode((1, 2, 3), form="JPEG", size=(48, 48))
    records[13]["jpg"] = encode((9, 200, 90), form="PNG", size=(32, 24))
    turned = encode((50, 60, 70), form="JPEG", size=(32, 24))
    records[15]["jpg"] = turned[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + turned[2:]
    del records[17]["jpg"]
    records[19]["jpeg"] = records[19].pop("jpg")
    records[21]["caption"] = ["a photo", "number 3"]
    rotten = bytearray(records[23]["jpg"])
    rotten[-60:-40] = bytes(range(20))
    records[23]["jpg"] = bytes(rotten)
    del records[25]["label"]
    records[27]["txt"] = "not the first of the usual names"
    for shard in range(3):
        write_examples(tmp_path / f"{shard}.tfrecord", records[shard * 20 : shard * 20 + 20])
    flipped = (tmp_path / "2.tfrecord").read_bytes()
    place = flipped.index(records[50]["jpg"]) + 100
    (tmp_path / "2.tfrecord").write_bytes(flipped[:place] + b"?" + flipped[place + 1 :])
    (tmp_path / "good").mkdir()
    write_examples(tmp_path / "good" / "0.tfrecord", photos(60, 100))
    write_examples(tmp_path / "good" / "1.tfrecord", photos(100, 120))
    patterns = [tmp_path / "*.tfrecord", tmp_path / "good" / "0.tfrecord", tmp_path / "good" / "1.tfrecord"]
    command = [sys.executable, "-c", SCRIPT, tokenizer_dir, *map(str, patterns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["off"] <= 2
    assert result["faults"] == {
        "bad_checksum": 1,
        "bad_image": 2,
        "missing_image": 1,
        "empty_caption": 1,
        "caption_not_utf8": 1,
    }
    assert result["left"] == []  # tf.data did all of what is sound
    assert result["devices"] == ["CPU"]


def test_what_it_cannot_do_is_refused(config):
    with pytest.raises(ValueError, match=r"tensorflow\" needs strict=False.*take executor=\"threads\""):
        Pipeline(config(executor="tensorflow"), global_batch_size=4)
    refused = config(resize_mode="naflex", num_workers=1, strict=False)
    assert [reason.split()[0] for reason in refusals(refused)] == ["makes", "decodes"]
    with pytest.raises(ValueError, match="executor must be one of auto, threads, tensorflow, not 'tf'"):
        config(executor="tf")
