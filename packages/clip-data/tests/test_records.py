import io
import json
import tarfile

import pytest

from clip_data import DataError, SourceConfig, read_records
from clip_data.tfrecord import write_examples


@pytest.fixture
def read(tmp_path):
    """Writes examples and reads them back as records."""

    def read(*examples, **options):
        write_examples(tmp_path / "a.tfrecord", examples)
        return list(read_records(SourceConfig(format="tfrecord", shards=str(tmp_path / "a.tfrecord"), **options)))

    return read


def test_img2dataset_example(read):
    fields = {"key": "00000003", "webp": b"pixels", "txt": "a cat", "caption": "a cat", "url": "u", "status": "success"}
    (record,) = read({**fields, "error_message": None, "width": 256, "SIMILARITY": 0.25})
    assert (record.key, record.image, record.caption, record.label) == ("00000003", b"pixels", "a cat", None)
    assert record.metadata["width"] == 256
    assert record.metadata["SIMILARITY"] == 0.25
    assert "webp" not in record.metadata
    assert record.shard.endswith("a.tfrecord")
    assert record.offset == 12


def test_usual_and_named_fields(read):
    fields = {"png": b"i", "image": b"j", "caption": "", "txt": "t", "alt": "alt", "label": 3, "class": 4}
    (record,) = read(fields)
    assert (record.image, record.caption, record.label) == (b"i", "t", 3)
    (record,) = read(fields, image_key="image", caption_key="alt", label_key="class")
    assert (record.image, record.caption, record.label) == (b"j", "alt", 4)
    (record,) = read({"jpg": b"i", "cls": "7", "label": 3})
    assert (record.caption, record.label) == ("", 7)
    for none in (None, "tabby", 0.5, 1 << 31):
        assert read({"jpg": b"i", "label": none})[0].label is None


def test_unusable_records_are_left_out(read, caplog):
    good = {"jpg": b"i", "label": 1}
    records = read(
        good, {"label": 1}, {"jpg": b""}, {"jpg": b"i"}, {"jpg": b"i", "label": "x"}, good, label_key="label"
    )
    assert [record.offset for record in records] == [12, records[1].offset]
    for reason in ("missing_image", "missing_label", "bad_record"):
        assert reason in caplog.text


def test_everything_unusable_fails(read):
    with pytest.raises(DataError, match=r"none of 30 samples could be used \(30 missing_image"):
        read(*[{"txt": "a"}] * 30)


def test_captions_that_are_not_utf8_are_marked(read):
    (record,) = read({"jpg": b"i", "caption": b"caf\xe9"})
    assert (record.caption, record.caption_is_utf8) == ("caf\ufffd", False)


def test_webdataset_records(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        for name, data in {
            "0.json": json.dumps({"key": "other", "caption": None, "width": 8}).encode(),
            "0.txt": b"a cat",
            "0.webp": b"i",
            "1.jpg": b"j",
            "1.cls": b"5\n",
            "2.gif": b"GIF89a",
            "2.json": b'{"image": "a/b.gif"}',
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    first, second, third = read_records(SourceConfig(format="webdataset", shards=str(tmp_path / "*.tar")))
    assert (first.key, first.image, first.caption, first.label, first.metadata["width"]) == (
        "0",
        b"i",
        "a cat",
        None,
        8,
    )
    assert (second.key, second.image, second.caption, second.label) == ("1", b"j", "", 5)
    assert (third.key, third.image) == ("2", b"GIF89a")


def test_an_image_under_another_name_is_found_by_its_bytes(read, encode):
    (record,) = read({"id": b"7", "image/encoded": encode(), "image/format": "png", "text": [b"one", b" "]})
    assert (record.image, record.caption, record.row) == (encode(), "one", 0)
    assert "image/encoded" not in record.metadata
    (record,) = read({"jpg": b"", "picture": encode()})
    assert record.image == encode()
