import io

import numpy as np
import pytest

from clip_data import Pipeline, SourceConfig
from clip_data.config import DataConfig
from clip_data.embedding import read_embedding
from clip_data.faults import RecordError
from clip_data.parquet import write_rows
from clip_data.tfrecord import write_examples
from clip_data.webdataset import write_samples

VECTORS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def npy(vector):
    np.save(out := io.BytesIO(), vector.astype(np.float16))
    return out.getvalue()


def write(kind, path, picture):
    """Shards of one vector for each record, as each format holds it; record 5 lacks its own."""
    vectors = [None if n == 5 else vector for n, vector in enumerate(VECTORS)]
    if kind == "parquet":
        write_rows(
            path, [(picture, {"key": str(n), "v": v if v is None else v.tolist()}) for n, v in enumerate(vectors)]
        )
    elif kind == "tfrecord":
        fields = [{"key": str(n), "png": picture, "v": v if v is None else v.tolist()} for n, v in enumerate(vectors)]
        write_examples(path, fields)
    else:
        members = [{"png": picture} if v is None else {"png": picture, "v": npy(v)} for v in vectors]
        write_samples(path, [(str(n), sample) for n, sample in enumerate(members)])


@pytest.mark.parametrize(("kind", "num_workers"), [("parquet", 0), ("tfrecord", 1), ("webdataset", 0)])
def test_a_batch_holds_the_vectors_of_its_records(kind, num_workers, tmp_path, encode):
    write(kind, str(tmp_path / "a"), encode())
    source = SourceConfig(format=kind, shards=str(tmp_path / "a"))
    options = {"image_size": 8, "tokenizer": None, "text_length": 8, "num_workers": num_workers, "prefetch": 1}
    config = DataConfig(sources=(source,), embeddings={"v": 3}, **options)
    with Pipeline(config, global_batch_size=8) as pipeline:
        held = [next(pipeline) for _ in range(4)]
        assert pipeline.faults["missing_embedding"] >= 1
    for batch in held:
        expected = VECTORS[[int(key) for key in batch.key]]
        np.testing.assert_allclose(batch.embeddings["v"], expected, rtol=1e-3)
        assert batch.embeddings["v"].dtype == np.float32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"missing_embedding: nothing in 'v'; the fields are v"),
        ([1.0, 2.0], "must hold 3 numbers; it holds 2"),
        (b"12345", "5 bytes are not 3 numbers of float32 or float16, and no .npy file"),
        (["a", "b", "c"], "v holds no vector"),
        ([0, 0, 0], "must be finite and not zero"),
        ([0, 1, float("nan")], "must be finite and not zero"),
    ],
)
def test_what_is_no_vector_is_named(value, message):
    with pytest.raises(RecordError, match=message):
        read_embedding({"v": value}, "v", 3)


@pytest.mark.parametrize(
    "header",
    [
        "(((",
        "\0",
        "{'descr': 5}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a','<f4')], 'fortran_order': False, 'shape': (3,), }",
    ],
)
def test_a_npy_file_is_judged_by_its_header(header):
    data = b"\x93NUMPY\x01\0" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n"
    for extra in (b"", bytes(4)):
        with pytest.raises(RecordError, match="bad_record: v holds no vector"):
            read_embedding({"v": data + extra}, "v", 3)


def test_bare_numbers_are_float32_or_float16():
    for dtype in ("<f4", "<f2"):
        stored = {"v": VECTORS[0].astype(dtype).tobytes()}
        np.testing.assert_allclose(read_embedding(stored, "v", 3), VECTORS[0], rtol=1e-3)
