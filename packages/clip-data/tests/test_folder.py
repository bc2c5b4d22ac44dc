import os

import pytest

from clip_data import DataConfig, Pipeline, SourceConfig, read_records


@pytest.fixture
def tree(tmp_path, encode):
    def tree(files):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode() if content is None else content)
        return str(tmp_path / "data")

    return tree


def records(folder, form="folder"):
    return list(read_records(SourceConfig(format=form, shards=folder)))


def test_images_beside_texts(tree, encode):
    folder = tree(
        {
            "b/2.JPG": None,
            "b/2.TXT": b"two\n",
            "a.png": None,
            "a.json": b'{"width": 8, "jpg": "url", "caption": null}',
            "a.txt": b"one",
            "a.cls": b"7",
            "c.webp": None,
            ".hidden.png": None,
            ".git/x.png": None,
            "notes.md": b"",
        }
    )
    found = records(folder)
    assert [(r.key, r.caption, r.label, r.row) for r in found] == [
        ("a", "one", 7, 0),
        ("b/2", "two\n", None, 1),
        ("c", "", None, 2),
    ]
    assert found[0].metadata["width"] == 8
    assert found[0].image == encode()


def test_classes(tree):
    folder = tree({"cat/1.jpg": None, "cat/deep/2.jpg": None, "Ant/1.png": None, "dog/readme": b"", "loose.png": None})
    assert [(r.key, r.label, r.caption) for r in records(folder, "class_folder")] == [
        ("Ant/1", 0, "Ant"),
        ("cat/1", 1, "cat"),
        ("cat/deep/2", 1, "cat"),
    ]


def test_what_cannot_be_read(tree, caplog):
    folder = tree({"a.png": None, "a.json": b"[", "b.png": None})
    os.symlink("nowhere", os.path.join(folder, "b.txt"))
    assert [record.key for record in records(folder)] == ["b"]
    assert "a.json cannot be read" in caplog.text
    empty = tree({"sub/notes.md": b""}) + "/sub"
    with pytest.raises(ValueError, match="no image file in the folder or below"):
        Pipeline(
            DataConfig(
                sources=(SourceConfig(format="folder", shards=empty),), image_size=8, tokenizer=None, text_length=1
            ),
            global_batch_size=1,
        )


def test_folders_are_asked_for_as_such(tree, tmp_path):
    folder = tree({"a.png": None, "b/a.png": None})
    with pytest.raises(FileNotFoundError, match="reads folders, not files"):
        records(folder + "/a.png")
    with pytest.raises(ValueError, match="local disks only"):
        records("gs://bucket/folder")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="class_folder source is one folder"):
        records(str(tmp_path / "*"), "class_folder")
