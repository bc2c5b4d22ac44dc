import re

import pytest
from pyarrow import fs

from clip_data import DataConfig, Pipeline, SourceConfig, buckets, read_records


@pytest.fixture
def read(tmp_path, encode):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.png").write_bytes(encode((ord(name), 0, 0)))

    def read(text, form="csv", **options):
        path = tmp_path / f"t.{form}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return list(read_records(SourceConfig(format=form, shards=str(path), **options)))

    return read


def test_csv(read, encode, tmp_path):
    text = f'filepath,title,score\nimages/a.png,"one, ""two""\nthree",0.5\n{tmp_path}/images/b.png,four,\n'
    first, second = read(text, caption_key="title")
    assert (first.key, first.caption, first.row) == ("images/a.png", 'one, "two"\nthree', 0)
    assert first.metadata["score"] == "0.5"
    assert first.image == encode((ord("a"), 0, 0))
    assert (second.caption, second.metadata["score"]) == ("four", "")


def test_tsv_with_crlf_and_a_byte_order_mark(read):
    (record,) = read(b"\xef\xbb\xbfimage\tcaption\tlabel\r\nimages/a.png\ta, b\t3\r\n", "tsv")
    assert (record.caption, record.label) == ("a, b", 3)


def test_a_quote_that_does_not_end_loses_its_line(read, caplog):
    text = 'image,caption\nimages/a.png,"one\nimages/a.png,two\nimages/a.png,"three\nlines"\nimages/b.png,"four" 4\n'
    assert [record.caption for record in read(text + 'images/b.png,five\nimages/b.png,"six\nimages/b.png,seven')] == [
        "two",
        "three\nlines",
        "five",
        "seven",
    ]
    assert re.search("3 lines were left out, .*: 2, 6, 8\n", caplog.text)


def test_a_quote_in_a_tsv_ends_on_its_line(read):
    text = 'image\tcaption\nimages/a.png\t"hello world\nimages/a.png\t"a ""b"""\nimages/b.png\t"quoted" word\n'
    assert [record.caption for record in read(text, "tsv")] == ['"hello world', 'a "b"', '"quoted" word']


def test_paths_of_every_kind(read, tmp_path, encode, monkeypatch, caplog):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "c.png").write_bytes(encode((7, 7, 7)))
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(buckets, "_filesystem", lambda path: (local, path.partition("://")[2]))
    names = [f"file://{tmp_path}/images/a.png", "gs://bucket/c.png", "gs://bucket/none.png", "https://host/x.png"]
    found = read("image\n" + "\n".join(names))
    assert [record.image for record in found] == [encode((ord("a"), 0, 0)), encode((7, 7, 7))]
    assert "row 2, key gs://bucket/none.png: missing_image" in caplog.text
    assert "https://host/x.png is an address; images are not downloaded" in caplog.text


def test_captions_that_are_not_utf8(read):
    (record,) = read(b"image,caption\nimages/a.png,caf\xe9\n\n\xf5\n")
    assert (record.caption, record.caption_is_utf8) == ("caf\ufffd", False)


def test_what_is_wrong_is_named(read, caplog):
    (record,) = read("image,caption\nimages/none.png,x\nimages/a.png,y\n,z\nimages,w\nimages/a\0.png,v\nimages/a.png\n")
    assert (record.caption, record.row) == ("y", 1)
    assert "row 0, key images/none.png: missing_image" in caplog.text
    assert "images/none.png is no file" in caplog.text
    assert re.search("1 lines were left out, .*: 7\n", caplog.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("url,caption\nu,c\n", "no column .*image_path.*; the columns are url, caption"),
        ("image,image\na,b\n", "must name each column, once"),
        (b"\xff\xfei\x00\n", "no table"),
        ('"image\n', "no table"),
    ],
)
def test_no_table(read, tmp_path, text, message):
    assert read(text) == []
    config = DataConfig(
        sources=(SourceConfig(format="csv", shards=str(tmp_path / "t.csv")),),
        image_size=8,
        tokenizer=None,
        text_length=1,
    )
    with pytest.raises(ValueError, match=message):
        Pipeline(config, global_batch_size=1)
