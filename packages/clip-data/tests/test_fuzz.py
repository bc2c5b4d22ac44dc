"""Whatever the bytes are: no reader hangs, dies, or takes more memory than its shard explains."""

import io
import itertools
import json
import re
import tarfile
import tracemalloc
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_data import Record, SourceConfig
from clip_data import parquet as parquet_module
from clip_data.faults import Fault
from clip_data.records import IndexedShard, scan
from clip_data.tfrecord import write_examples

_SETTINGS = settings(
    max_examples=150,
    deadline=timedelta(seconds=5),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_EXAMPLES = [
    {
        "key": f"{n}",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(range(n, n + 90)),
        "caption": f"view {n}",
        "width": n,
        "f": n / 3,
    }
    for n in range(12)
]


def tfrecord(path):
    write_examples(path, _EXAMPLES)


def tar(form):
    def write(path):
        with tarfile.open(path, "w", format=form) as file:
            for number, example in enumerate(_EXAMPLES):
                name = example["key"] if number % 3 else f"{'d' * 60}/{'n' * 70}{number}"
                members = {"json": json.dumps({"width": 1}).encode(), "png": example["png"], "txt": b"a"}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{name}.{extension}")
                    info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
                    file.addfile(info, io.BytesIO(data))

    return write


def parquet(compression, version):
    def write(path):
        columns = {name: [example[name] for example in _EXAMPLES] for name in _EXAMPLES[0]}
        pq.write_table(pa.table(columns), path, row_group_size=5, compression=compression, data_page_version=version)

    return write


def csv(path):
    lines = "".join(f'nowhere/{n}.png,"view, {n}"\n' for n in range(12))
    path.write_text(f"image,caption\n{lines}")


_SHARDS = {
    "tfrecord": ("tfrecord", tfrecord),
    "pax": ("webdataset", tar(tarfile.PAX_FORMAT)),
    "ustar": ("webdataset", tar(tarfile.USTAR_FORMAT)),
    "gnu": ("webdataset", tar(tarfile.GNU_FORMAT)),
    "parquet-snappy": ("parquet", parquet("SNAPPY", "1.0")),
    "parquet-zstd": ("parquet", parquet("ZSTD", "2.0")),
    "csv": ("csv", csv),
}

_places = st.one_of(st.floats(0, 1), st.floats(0.9, 1))  # a Parquet file's footer is at its end
_bytes = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 512, b"\x80" * 12, b"00000000000 ", b"77777777777 "]),
)
_edits = st.lists(
    st.tuples(st.sampled_from(["put", "insert", "delete", "cut"]), _places, _bytes), min_size=1, max_size=8
)


def edited(whole, edits):
    data = bytearray(whole)
    for kind, place, new in edits:
        at = int(place * len(data))
        if kind == "put":
            data[at : at + len(new)] = new
        elif kind == "insert":
            data[at:at] = new
        elif kind == "delete":
            del data[at : at + new[0]]
        else:
            del data[at:]
    return bytes(data)


def read(form, path):
    """Reads what can be read; anything that is raised fails the test."""
    shard = IndexedShard(SourceConfig(format=form, shards=str(path)), str(path))
    assert len(shard) <= max(1 << 20, 64 * path.stat().st_size)
    items = list(itertools.islice(scan(shard), 100))
    assert all(isinstance(item, Record | Fault) for item in items)


@pytest.mark.parametrize("name", _SHARDS)
def test_damaged_shards(tmp_path, name, monkeypatch):
    monkeypatch.setattr(parquet_module, "_ALWAYS_ALLOWED", 1 << 20)
    form, write = _SHARDS[name]
    path = tmp_path / "shard"
    write(path)
    whole = path.read_bytes()

    @_SETTINGS
    @given(_edits)
    def damaged(edits):
        path.write_bytes(edited(whole, edits))
        tracemalloc.start()
        before, most = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
        try:
            read(form, path)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
            assert pa.default_memory_pool().max_memory() <= max(most, before + (8 << 20))
        finally:
            tracemalloc.stop()

    damaged()


@pytest.mark.parametrize("form", ["tfrecord", "webdataset", "parquet", "csv", "tsv"])
def test_arbitrary_bytes(tmp_path, form):
    path = tmp_path / "shard"

    @_SETTINGS
    @given(st.binary(max_size=2000))
    def arbitrary(data):
        path.write_bytes(data)
        read(form, path)

    arbitrary()


def test_members_stay_in_their_tar(tmp_path):
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name in ("../../up.jpg", "/etc/root.jpg", "a/../../b.jpg", "..jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            file.addfile(info, io.BytesIO(b"image"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("link.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    shard = IndexedShard(SourceConfig(format="webdataset", shards=str(path)), str(path))
    assert [(item.key, item.image) for item in scan(shard)] == [(key, b"image") for key in ("up", "etc/root", "a/b")]
    assert [found.name for found in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_a_small_file_that_expands(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_ALWAYS_ALLOWED", 1 << 20)
    path = tmp_path / "a.parquet"
    image = b"\x89PNG\r\n\x1a\n" + bytes(100_000)
    pq.write_table(pa.table({"png": [image] * 200}), path, compression="ZSTD")
    assert path.stat().st_size < 100_000
    before = pa.default_memory_pool().max_memory()
    (fault,) = itertools.islice(scan(IndexedShard(SourceConfig(format="parquet", shards=str(path)), str(path))), 1)
    assert fault.reason == "bad_record"
    assert re.search(r"more than \d+ bytes from a file of \d+", fault.detail)
    assert pa.default_memory_pool().max_memory() - before < 6e6


def test_a_file_whose_rows_share_one_large_value(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_ALWAYS_ALLOWED", 12 << 20)
    path = tmp_path / "a.parquet"
    value = pa.array([b"\x89PNG\r\n\x1a\n" + bytes(8 << 20)])
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), value)
    pq.write_table(pa.table({"png": shared}), path, compression="ZSTD", store_schema=False)
    assert path.stat().st_size < 2000
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), pool.max_memory()
    (fault,) = itertools.islice(scan(IndexedShard(SourceConfig(format="parquet", shards=str(path)), str(path))), 1)
    assert re.search(r"more than \d+ bytes from a file of \d+", fault.detail)
    assert pool.max_memory() <= max(most, before + (64 << 20))
