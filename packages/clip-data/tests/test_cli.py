import json
import re
import subprocess
import sys

import pytest

from clip_data.cli import main
from clip_data.tfrecord import write_examples
from clip_data.webdataset import write_samples


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def folder(tmp_path, encode):
    (tmp_path / "pictures").mkdir()
    for n in range(6):
        (tmp_path / "pictures" / f"{n}.png").write_bytes(encode((n, n, n), size=(30 + n, 20)))
        (tmp_path / "pictures" / f"{n}.txt").write_text(f"<b>picture</b> {n}" if n else " ")
    return tmp_path / "pictures"


def test_write_then_inspect(run, folder, tmp_path):
    code, out, _ = run("write", folder, tmp_path / "shards", "--to", "webdataset", "--samples-per-shard", 3)
    assert code == 0
    assert out.startswith(f"5 records in 2 shards: {tmp_path}/shards\n")
    assert "1  empty_caption" in out
    page = tmp_path / "page.html"
    code, out, _ = run("inspect", f"{tmp_path}/shards/*.tar", "--page", page)
    assert code == 0
    for line in (
        r"webdataset: 2 shards, 5 records, \d+\.\d kB",
        r"00000\.tar +3 +\d+\.\d kB +-",
        "types +5 png",
        "width +31 to 35, median 33",
        "characters +16 to 16, median 16",
        r"original_key +5 +str +1\n",
        "Nothing is wrong",
    ):
        assert re.search(line, out), line
    html = page.read_text()
    assert html.count("<figure>") == 5
    assert "&lt;b&gt;picture&lt;/b&gt; 1" in html
    assert not re.search(r"<b>|(src|href)=.(?!data:)|<script", html)


def test_inspect_says_what_is_wrong_where(run, tmp_path, examples):
    records = examples(0, 8)
    records[2]["webp"] = records[2]["webp"][:-9]
    records[3] |= {"key": records[4]["key"], "caption": b"caf\xe9"}
    write_examples(tmp_path / "0.tfrecord", records)
    data = (tmp_path / "0.tfrecord").read_bytes()
    (tmp_path / "0.tfrecord").write_bytes(data[:-5])
    write_examples(tmp_path / "1.tfrecord", examples(8, 12))
    (tmp_path / "2.tfrecord").touch()
    code, out, _ = run("inspect", f"{tmp_path}/*.tfrecord")
    assert code == 1
    assert re.search(r"0\.tfrecord +7 .*1 shard_cut_short, 1 bad_image, 1 caption_not_utf8, 1 duplicate_key\n", out)
    assert re.search(r"1\.tfrecord +4 .*-\n", out)
    assert re.search(r"2\.tfrecord +0 +0 B +1 empty_shard\n", out)
    assert re.search(r"0\.tfrecord at byte \d+, key 00000002: bad_image", out)
    assert re.search(r"keys again +1\n", out)
    assert re.search(r"labels +11 different, 0 to 11, on 11 records", out)
    code, out, _ = run("inspect", f"{tmp_path}/*.tfrecord", "--json", "--sample", 3)
    report = json.loads(out)
    assert (code, report["num_records"], report["num_read"]) == (1, 11, 3)
    assert [shard["num_records"] for shard in report["shards"]] == [7, 4, 0]
    assert report["shards"][0]["counts"] == {"shard_cut_short": 1}


def test_inspect_prints_whatever_records_hold(run, tmp_path, encode):
    members = {"png": encode(), "json": b'{"caption": "a \\ud83d b", "x": "\\u001b[31mred \\udcff"}'}
    write_samples(tmp_path / "a.tar", [(str(n), members) for n in range(3)])
    code, out, _ = run("inspect", tmp_path / "a.tar", "--page", tmp_path / "page.html")
    assert code == 1
    assert "3 caption_not_utf8" in out
    assert "\x1b" not in out
    assert "a ? b" in (tmp_path / "page.html").read_text()


def test_inspect_of_a_table(run, tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode())
    (tmp_path / "a.csv").write_text("image,caption\na.png,one\na.png,two\n")
    assert run("inspect", tmp_path / "a.csv")[0] == 0  # several captions of one picture
    (tmp_path / "a.csv").write_text("image,title\na.png,one\na.png,two\n")
    code, out, _ = run("inspect", tmp_path / "a.csv")
    assert code == 1
    assert "none of 2 records has a caption or a label; the fields are title" in out


def test_what_is_skipped_is_not_wrong(run, folder):
    keep = '{"column": "smallest_side", "min": 20}'
    code, out, _ = run("inspect", folder, "--filter", keep, "--filter", '{"column": "aspect_ratio", "max": 1.6}')
    assert code == 0
    assert "(skipped: 3 filtered)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.tar"], "no shard at none.tar"),
        (["inspect", "a.zip"], "does not show in its name: give --format"),
        (["inspect", "a.tar", "b.csv"], "one format at a time: a.tar and b.csv differ"),
        (["inspect", "a.tar", "--filter", "{"], "must be a JSON object, not '{'"),
        (["inspect", "a.tar", "--filter", '{"column": "a", "minimum": 1}'], "column and any of column, min, max"),
        (["inspect", "a.tar", "--filter", '{"column": "a", "max": [1]}'], "max of 'a' must be a number, not [1]"),
        (["write", "a.tar", "out", "--samples-per-shard", "0"], "at least 1, not 0"),
    ],
)
def test_one_message_for_a_mistake(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_help_imports_next_to_nothing():
    code = (
        "import sys; sys.argv[1:] = ['--help']; from clip_data.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print({'numpy', 'PIL', 'pyarrow', 'cv2', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inspect" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_a_reader_that_has_enough(folder):
    command = [sys.executable, "-c", "import sys; from clip_data.cli import main; sys.exit(main())", "inspect", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
