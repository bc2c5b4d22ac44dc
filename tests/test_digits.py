"""The main job, as a newcomer runs it: the digits example through both commands."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits"


# For what is compared and needs no fast code: optimising that code is most of the time.
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(*arguments, devices=1, cwd=ROOT, flags=""):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}"}
    command = [str(Path(sys.executable).parent / arguments[0]), *map(str, arguments[1:])]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("digits") / "run"
    # As many steps as the example has, of half as many pairs each.
    overrides = (f"output_dir={output}", "global_batch_size=64", "train_samples=51200", "optimizer.learning_rate=1e-3")
    sets = [part for override in overrides for part in ("--set", override)]
    screen = run("clip-train", "run", EXAMPLE / "config.json", *sets)
    return output, screen


def metrics(output):
    evaluation = json.loads((output / "results.json").read_text())["evaluation"]
    return {name: value for result in evaluation for name, value in result["metrics"].items()}


def test_the_example_reads_digits_it_has_never_seen(finished):
    output, screen = finished
    assert "random initialisation" in screen
    assert "1,437 pairs" in screen
    assert metrics(output)["acc1"] >= 0.95
    assert metrics(output)["text_retrieval_recall@1"] >= 0.9


def test_a_linear_probe_reads_them_too(finished, tmp_path):
    output, _ = finished
    overrides = ("--set", f"model={output}", "--set", f"output_dir={tmp_path / 'probe'}")
    screen = run("clip-finetune", "classify", EXAMPLE / "classify.json", *overrides)
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert results["metrics"]["lp_acc1"] >= 0.96
    assert np.sum(results["confusion"]) == results["num_samples"] == 360
    assert "lp_acc1" in screen


def test_eight_devices_follow_the_curve_of_one(tmp_path):
    losses = {}
    for devices in (1, 8):
        output = tmp_path / str(devices)
        shallow = ("model.config.vision.num_layers=1", "model.config.text.num_layers=1")
        overrides = (f"output_dir={output}", "train_samples=2560", "evaluation=[]", *shallow)
        sets = [part for override in overrides for part in ("--set", override)]
        run("clip-train", "run", EXAMPLE / "config.json", *sets, devices=devices, flags=HASTY)
        losses[devices] = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(losses[1]) == 20
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-4)


@pytest.fixture
def readme_config(tmp_path):
    """The README's config with its paths replaced: digits for the buckets, a tar of them for ImageNet."""
    from clip_data import SourceConfig, read_records

    block = re.search(r"```jsonc\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    shards = tmp_path / "imagenet" / "test"
    shards.mkdir(parents=True)
    records = read_records(SourceConfig(format="tfrecord", shards=str(EXAMPLE / "shards/test-*.tfrecord")))
    with tarfile.open(shards / "0.tar", "w") as tar:
        for record in itertools.islice(records, 64):
            for name, content in (("webp", record.image), ("cls", str(record.label).encode())):
                member = tarfile.TarInfo(f"{record.key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (tmp_path / "imagenet" / name).write_text((EXAMPLE / name).read_text())
    text = block[1]
    for published, local in (
        ("runs/datacomp-b16", tmp_path / "run"),
        ("gs://bucket/datacomp/small/shards/*.tfrecord", EXAMPLE / "shards/train-*.tfrecord"),
        ("gs://bucket/imagenet/test/*.tar", shards / "*.tar"),
    ):
        assert published in text
        text = text.replace(published, str(local))
    file = tmp_path / "config.json"
    file.write_text(text)
    # No Hub here: the tokenizer is the digits'.
    return [file, "--set", f"data.tokenizer={EXAMPLE / 'tokenizer'}", "--set", "data.text_length=12"]


def test_the_readmes_config_is_understood_as_it_stands(readme_config):
    screen = run("clip-train", "run", *readme_config, "--dry-run")
    assert "203.2 M" in screen
    assert "4,096 = 1 device × 1,024 per device × 4 microbatches" in screen
    assert "31,250 (128,000,000 pairs" in screen


def test_the_readmes_config_runs_at_a_laptops_size(readme_config, tmp_path):
    small = json.loads(re.sub(r"//[^\n]*", "", (EXAMPLE / "config.json").read_text()))["model"]
    del small["config"]["preprocess"]
    overrides = (f"model={json.dumps(small)}", "global_batch_size=64", "microbatch_size=16", "train_samples=1280")
    run("clip-train", "run", *readme_config, *(part for override in overrides for part in ("--set", override)))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 21  # one evaluation before the first step
    # Before it, every twentieth of the run, and at the end.
    assert sum("imagenet/acc1" in row for row in rows) == 21
    assert json.loads((tmp_path / "run" / "results.json").read_text())["evaluation"][0]["num_samples"] == 64
