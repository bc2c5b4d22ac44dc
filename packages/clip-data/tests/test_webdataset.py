import io
import json
import tarfile

import pytest

from clip_data.faults import RecordError
from clip_data.sources import open_shard
from clip_data.webdataset import index_tar, read_sample


def tar(path, members, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            file.addfile(info, io.BytesIO(data))
    return open_shard(str(path))


SAMPLES = [
    ("00000.json", json.dumps({"caption": None, "width": 8}).encode()),
    ("00000.txt", b"a cat"),
    ("00000.webp", b"pixels" * 200),
    ("b/00001.jpg", b"more"),
    ("b/00001.cls", b"3"),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_reads_every_tar(tmp_path, form):
    long = "c/" + "k" * 90 + ("/" + "d" * 60 if form == tarfile.USTAR_FORMAT else "k" * 90)
    shard = tar(tmp_path / "a.tar", [*SAMPLES, (long + ".PNG", b"last")], form)
    entries, fault = index_tar(shard)
    assert fault is None
    first, second, third = (read_sample(shard, entry) for entry in entries)
    assert first == {"caption": None, "width": 8, "txt": b"a cat", "webp": b"pixels" * 200, "__key__": "00000"}
    assert second == {"jpg": b"more", "cls": b"3", "__key__": "b/00001"}
    assert third == {"png": b"last", "__key__": long}


def test_same_name_in_another_folder_is_another_sample(tmp_path):
    entries, _ = index_tar(tar(tmp_path / "a.tar", [("a/1.jpg", b"x"), ("b/1.jpg", b"y"), ("b/1.jpg", b"z")]))
    assert [(key, len(members)) for key, members in entries] == [("a/1", 1), ("b/1", 1)]


def test_keeps_whole_samples_before_a_cut(tmp_path):
    path = tmp_path / "a.tar"
    tar(path, SAMPLES)
    whole = path.read_bytes()
    inside_second = 512 * (2 + 2 + 1 + 3 + 1)
    path.write_bytes(whole[: inside_second + 5])
    entries, fault = index_tar(open_shard(str(path)))
    assert ([key for key, _ in entries], fault.reason) == (["00000"], "shard_cut_short")

    path.write_bytes(whole[:inside_second])  # at a member's end, nothing says that the sample is whole
    entries, fault = index_tar(open_shard(str(path)))
    assert ([key for key, _ in entries], fault.reason) == ([], "shard_cut_short")


def test_stops_at_a_damaged_header(tmp_path):
    path = tmp_path / "a.tar"
    tar(path, SAMPLES)
    data = bytearray(path.read_bytes())
    data[512 * (2 + 2 + 1 + 3) + 124] ^= 1
    path.write_bytes(data)
    entries, fault = index_tar(open_shard(str(path)))
    assert (len(entries), fault.reason, fault.offset) == (0, "bad_length", 512 * 8)


@pytest.mark.parametrize("size", [b"-0000001750\0", b"-0000000001\0"])
def test_a_negative_size_does_not_lead_back(tmp_path, size):
    path = tmp_path / "a.tar"
    tar(path, SAMPLES)
    data = bytearray(path.read_bytes())
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    entries, fault = index_tar(open_shard(str(path)))
    assert (entries, fault.reason) == ([], "bad_length")


def test_json_that_is_no_object(tmp_path):
    shard = tar(tmp_path / "a.tar", [("1.json", b"[1]"), ("2.json", b"{")])
    for entry in index_tar(shard)[0]:
        with pytest.raises(RecordError, match="its json member"):
            read_sample(shard, entry)
