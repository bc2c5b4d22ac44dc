import subprocess
import sys

import numpy as np
import pytest

from clip_data.faults import RecordError
from clip_data.sources import open_shard
from clip_data.tfrecord import index_tfrecord, read_example, write_examples

FIELDS = {
    "key": b"7",
    "webp": bytes(range(256)) * 20,
    "empty": b"",
    "words": [b"a", b""],
    "ints": [-1, 0, 2**62, -(2**63)],
}
FIELDS |= {"floats": [0.5, -1.25], "txt": "sch\u00f6n"}


def test_round_trip(tmp_path):
    path = tmp_path / "a.tfrecord"
    assert write_examples(path, [FIELDS, {"key": "8", "none": None}]) == 2
    shard = open_shard(str(path))
    entries, fault = index_tfrecord(shard)
    assert fault is None
    assert read_example(shard, entries[0]) == FIELDS | {"txt": "schön".encode()}
    assert read_example(shard, entries[1]) == {"key": b"8", "none": b""}


def test_agrees_with_tensorflow(tmp_path):
    pytest.importorskip("tensorflow", reason="tensorflow is the independent reference")
    ours, theirs = str(tmp_path / "ours.tfrecord"), str(tmp_path / "theirs.tfrecord")
    write_examples(ours, [FIELDS])
    # Another process: tensorflow's import takes seconds and warns.
    code = """if True:
        import sys, tensorflow as tf
        ours, theirs = sys.argv[1:]
        (record,) = tf.data.TFRecordDataset(ours).as_numpy_iterator()
        example = tf.train.Example.FromString(record)
        with tf.io.TFRecordWriter(theirs) as writer:
            writer.write(example.SerializeToString(deterministic=True))
        print({k: getattr(v, v.WhichOneof("kind")).value[:] for k, v in example.features.feature.items()})
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code, ours, theirs], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {
        k: [v.encode() if isinstance(v, str) else v for v in np.atleast_1d(np.array(v, object))]
        for k, v in FIELDS.items()
    }
    assert eval(done.stdout) == listed
    shard = open_shard(theirs)
    entries, fault = index_tfrecord(shard)
    assert fault is None
    assert read_example(shard, entries[0]) == FIELDS | {"txt": "schön".encode()}


def test_damage_is_named_and_contained(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_examples(path, [{"n": n} for n in range(4)])
    whole = path.read_bytes()
    size = len(whole) // 4

    def index(data):
        path.write_bytes(data)
        shard = open_shard(str(path))
        return shard, *index_tfrecord(shard)

    flipped = bytearray(whole)
    flipped[size + 14] ^= 1
    shard, entries, fault = index(flipped)
    assert fault is None
    with pytest.raises(RecordError, match="bad_checksum"):
        read_example(shard, entries[1])
    assert read_example(shard, entries[2]) == {"n": 2}

    flipped = bytearray(whole)
    flipped[2 * size] ^= 1
    _, entries, fault = index(flipped)
    assert (len(entries), fault.reason, fault.offset) == (2, "bad_length", 2 * size)

    for cut in (1, size - 1):
        _, entries, fault = index(whole[:-cut])
        assert (len(entries), fault.reason, fault.offset) == (3, "shard_cut_short", 3 * size)
