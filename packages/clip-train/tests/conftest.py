import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Eight devices on one CPU, asked for before jax starts its backend.
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

STORES = Path(__file__).parents[2] / "clip-data/tests/faulty_store.py"
EMULATORS = {"s3": "moto.server", "gs": "gcp_storage_emulator.server"}

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
MODEL = {
    "config": {
        "vision": {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 2, "num_heads": 2},
        "text": {"vocab_size": 16, "max_length": 6, "width": 32, "num_layers": 2, "num_heads": 2},
        "preprocess": {"tokenizer": "words"},
    }
}


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A folder with shards of noisy coloured squares, a tokenizer, prompts, and a config that trains on them."""
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from clip_data.tfrecord import write_examples

    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)

    def example(number):
        label = number % len(COLOURS)
        name, colour = list(COLOURS.items())[label]
        noisy = np.clip(np.array(colour) + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(png := io.BytesIO(), "PNG")
        caption = f"a {name} square" if number // len(COLOURS) % 2 else f"the {name} one"
        return {"key": f"{number:05d}", "png": png.getvalue(), "caption": caption, "label": label}

    write_examples(str(folder / "train-0.tfrecord"), [example(n) for n in range(40)])
    write_examples(str(folder / "train-1.tfrecord"), [example(n) for n in range(40, 96)])
    write_examples(str(folder / "test-0.tfrecord"), [example(n) for n in range(21)])

    words = ["<pad>", "</s>", "<unk>", "a", "the", "square", "one", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "words")
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\nthe {c} one\n")
    config = {
        "output_dir": "run",
        "model": MODEL,
        "data": {"train": [{"format": "tfrecord", "shards": "train-*.tfrecord"}]},
        "global_batch_size": 16,
        "train_samples": "20 epochs",
        "optimizer": {"learning_rate": 2e-3},
        "checkpoint": {"every_steps": 40},
        "evaluation": [
            {
                "name": "colours",
                "task": "zeroshot_classification",
                "data": {"format": "tfrecord", "shards": "test-*.tfrecord"},
                "every": "50%",
            },
            {
                "name": "pairs",
                "task": "zeroshot_retrieval",
                "positives": "caption",
                "data": {"format": "tfrecord", "shards": "test-*.tfrecord"},
            },
        ],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """What is compiled in a module, also by the processes that it starts, is compiled once."""
    import jax

    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tmp_path_factory):
    """An empty bucket's address, in a store on this machine: those that clip-data's tests read from."""
    from pyarrow import fs

    pytest.importorskip(EMULATORS[request.param])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", STORES, request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    port, direct = process.stdout.readline().split()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
            patch.setenv(name, url)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        if request.param == "s3":
            store = fs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{direct}", allow_bucket_creation=True)
        else:
            store = fs.GcsFileSystem(
                endpoint_override=f"127.0.0.1:{port}", scheme="http", anonymous=True, project_id="test"
            )
        store.create_dir("bucket")
        yield f"{request.param}://bucket"
        left = list(Path(tempfile.gettempdir()).iterdir())
    process.kill()
    process.communicate()
    assert left == []  # on this machine's disk
