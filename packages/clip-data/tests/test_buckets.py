import io
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from clip_data import DataConfig, Pipeline, SourceConfig, buckets, list_shards, read_records, write, write_shards
from clip_data.buckets import list_objects
from clip_data.tfrecord import write_examples

NUM_FAULTS = 50
EMULATORS = {"s3": "moto.server", "gs": "gcp_storage_emulator.server"}
KINDS = {"429", "503", "reset", "cut", "stall"}


@pytest.fixture(scope="module", params=["s3", "gs"])
def emulator(request, tmp_path_factory):
    """A store of four shards: its scheme, the proxy's address and the pixels."""
    pytest.importorskip(EMULATORS[request.param])
    script = str(Path(__file__).with_name("faulty_store.py"))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", script, request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    port, direct = process.stdout.readline().split()
    if request.param == "s3":
        filesystem = fs.S3FileSystem(
            access_key="x",
            secret_key="x",
            region="us-east-1",
            endpoint_override=f"http://127.0.0.1:{direct}",
            allow_bucket_creation=True,
        )
    else:
        filesystem = fs.GcsFileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", anonymous=True, project_id="test"
        )
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), np.uint8)
    filesystem.create_dir("bucket")
    for shard in range(4):
        path = tmp_path_factory.mktemp("shards") / f"{shard}0.tfrecord"
        examples = []
        for n in range(shard * 10, shard * 10 + 10):
            Image.fromarray(noise[n]).save(png := io.BytesIO(), "PNG")
            examples.append({"key": f"{n:02d}", "png": png.getvalue(), "caption": f"{n}"})
        write_examples(path, examples)
        with filesystem.open_output_stream(f"bucket/{path.name}") as stream:
            stream.write(path.read_bytes())
    for path in more(tmp_path_factory.mktemp("more"), noise[:3]):
        with filesystem.open_output_stream(f"bucket/more/{path.name}") as stream:
            stream.write(path.read_bytes())
    yield request.param, f"http://127.0.0.1:{port}", noise
    process.kill()
    process.communicate()


def more(folder, noise):
    """Files of the other formats, of a few pictures."""
    lines = ["image,caption"]
    for n, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{n}.png")
        lines.append(f"{n}.png,{n}")
    (folder / "00000.csv").write_text("\n".join(lines))
    source = SourceConfig(format="csv", shards=str(folder / "00000.csv"))
    for form in ("webdataset", "parquet"):
        (shard,) = write_shards(source, folder / form, format=form).shards
        yield Path(shard)
    yield from folder.glob("*.*")


@pytest.fixture
def store(emulator, monkeypatch):
    """The store, and a function that has the proxy fail so many times, or tells how it has failed since."""
    scheme, url, noise = emulator
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": url,
        "STORAGE_EMULATOR_HOST": url,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(buckets, "_FIRST_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(buckets, "_LONGEST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(buckets, "_STALL_SECONDS", 0.5)
    monkeypatch.setattr(buckets, "_WRITE_ATTEMPTS", 1)

    def faults(number=None, of=""):
        with urllib.request.urlopen(f"{url}/faults" if number is None else f"{url}/faults/{number}{of}") as answer:
            return json.load(answer)

    yield f"{scheme}://", noise, faults
    faults(0)


def test_fifty_faults_lose_and_double_nothing(store):
    scheme, noise, faults = store
    assert list_shards(f"{scheme}bucket/*.tfrecord") == [f"{scheme}bucket/{n}0.tfrecord" for n in range(4)]
    faults(NUM_FAULTS)
    source = SourceConfig(format="tfrecord", shards=f"{scheme}bucket/*.tfrecord")
    config = DataConfig(
        sources=(source,), image_size=48, tokenizer=None, text_length=1, shuffle=False, num_epochs=1, num_threads=8
    )
    with Pipeline(config, global_batch_size=16) as pipeline:
        batches = list(pipeline)
        assert pipeline.faults == {}
    made = faults()
    assert len(made) == NUM_FAULTS
    assert set(made) == KINDS
    images = np.concatenate([batch.image[batch.mask] for batch in batches])
    np.testing.assert_array_equal(images, noise)


def test_questions_through_faults(store):
    scheme, _, faults = store
    faults(4, "/about")  # the fifth kind takes its time
    assert list_shards(f"{scheme}bucket/*.tfrecord") == [f"{scheme}bucket/{n}0.tfrecord" for n in range(4)]
    assert list_shards(f"{scheme}bucket/{{0,2}}0.tfrecord") == [f"{scheme}bucket/{n}0.tfrecord" for n in (0, 2)]
    records = list(read_records(SourceConfig(format="tfrecord", shards=f"{scheme}bucket/*.tfrecord")))
    assert [record.key for record in records] == [f"{n:02d}" for n in range(40)]
    assert len(faults()) == 4


@pytest.mark.parametrize("form", ["webdataset", "parquet", "csv"])
def test_every_format_through_faults(store, form):
    scheme, noise, faults = store
    faults(4)
    extension = "tar" if form == "webdataset" else form
    source = SourceConfig(format=form, shards=f"{scheme}bucket/more/00000.{extension}")
    options = {"tokenizer": None, "text_length": 1, "shuffle": False, "num_epochs": 1}
    with Pipeline(DataConfig(sources=(source,), image_size=48, **options), global_batch_size=3) as pipeline:
        batch = next(pipeline)
        assert pipeline.faults == {}
    np.testing.assert_array_equal(batch.image, noise[:3])
    assert len(faults()) > 1


def test_after_the_deadline_the_object_is_named(store, monkeypatch):
    scheme, _, faults = store
    faults(1000)
    monkeypatch.setattr(buckets, "_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(buckets, "_STALL_SECONDS", 0.1)
    message = rf"nothing of {scheme}bucket/10.tfrecord went through for 0.3 seconds, in \d+ attempts"
    with pytest.raises(OSError, match=message):
        buckets.read_object(f"{scheme}bucket/10.tfrecord")


def test_what_is_not_there_is_not_tried_again(store):
    scheme, *_ = store
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        buckets.read_object(f"{scheme}bucket/none.tfrecord")
    with pytest.raises(FileNotFoundError, match="none"):
        list_shards(f"{scheme}bucket/none.tfrecord")
    assert time.monotonic() - begin < 5


def test_writes_through_faults(store, tmp_path):
    scheme, _, faults = store
    remote = SourceConfig(format="tfrecord", shards=f"{scheme}bucket/*.tfrecord")
    local = write_shards(remote, tmp_path / "local", format="parquet", samples_per_shard=15)
    source = SourceConfig(format="parquet", shards=local.shards)
    faults(len(KINDS))
    written = write_shards(source, f"{scheme}bucket/out/", format="tfrecord", samples_per_shard=15)
    assert set(faults()) == KINDS
    faults(0)
    same = write_shards(source, tmp_path / "same", format="tfrecord", samples_per_shard=15)
    assert written.shards == tuple(f"{scheme}bucket/out/{Path(path).name}" for path in same.shards)
    for path in (tmp_path / "same").iterdir():
        assert bytes(buckets.read_object(f"{scheme}bucket/out/{path.name}")) == path.read_bytes()
    with pytest.raises(FileExistsError, match="new or empty"):
        write_shards(source, f"{scheme}bucket/out", format="tfrecord")


def test_what_cannot_be_finished_is_taken_back(store, monkeypatch):
    scheme, *_ = store
    source = SourceConfig(format="tfrecord", shards=f"{scheme}bucket/*.tfrecord")
    with pytest.raises(FileNotFoundError, match="no bucket nowhere"):
        write_shards(source, f"{scheme}nowhere/a", format="tfrecord")

    columns = write._columns
    monkeypatch.setattr(write, "_columns", lambda key, record: columns(key, record) if key != "000020000" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shards(source, f"{scheme}bucket/failed", format="tfrecord", samples_per_shard=10)
    assert not list_objects(f"{scheme}bucket/failed/*")
