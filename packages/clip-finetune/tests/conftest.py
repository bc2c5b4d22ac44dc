import contextlib
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest

collect_ignore_glob = ["fixtures/*.py"]  # they run in PyTorch's environment

# Eight devices on one CPU, asked for before jax starts its backend.
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

WORDS = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "blue"]


@contextlib.contextmanager
def compiled_quickly():
    """Programs run once or twice on a few pictures: to optimise them takes longer than to run them."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def quick():
    """All tests of this package."""
    with compiled_quickly():
        yield


def write_tokenizer(directory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


def picture(rng, label):
    """Reddish or bluish noise."""
    pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)
    pixels[..., 2 * label] += 100
    from PIL import Image

    Image.fromarray(pixels).save(png := io.BytesIO(), "PNG")
    return png.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random model, and pictures that are reddish or bluish: as shards, and in class folders."""
    import jax

    from clip_data.tfrecord import write_examples
    from clip_models import ClipConfig, PreprocessConfig, TextConfig, VisionConfig, init, save_pretrained

    folder = tmp_path_factory.mktemp("colours")
    model = ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2),
        text=TextConfig(vocab_size=8, max_length=8, width=32, num_layers=1, num_heads=2),
    )
    with compiled_quickly():
        params = init(model, jax.random.key(0))
    save_pretrained(folder / "model", model, params)
    write_tokenizer(folder / "words")
    speaking = replace(model, preprocess=PreprocessConfig(tokenizer=str(folder / "words")))
    save_pretrained(folder / "eyes", replace(model, text=None), {"vision": params["vision"]})
    save_pretrained(folder / "speaking", speaking, params)
    rng = np.random.default_rng(0)

    def example(number):
        return {
            "key": str(number),
            "png": picture(rng, number % 2),
            "label": number % 2,
            "caption": ("red", "blue")[number % 2],
        }

    write_examples(str(folder / "train.tfrecord"), [example(n) for n in range(60)])
    write_examples(str(folder / "test.tfrecord"), [example(n) for n in range(30)])
    unlabelled = {name: value for name, value in example(0).items() if name != "label"}
    write_examples(str(folder / "unlabelled.tfrecord"), [unlabelled])
    (folder / "classnames.txt").write_text("red\nblue\n")
    for label, name in enumerate(("red things", "sea")):
        (folder / "pictures" / name).mkdir(parents=True)
        for n in range(40):
            (folder / "pictures" / name / f"{n}.png").write_bytes(picture(rng, label))
    (folder / "pictures" / "sea" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    config = {
        "output_dir": "out",
        "model": "model",
        "train": {"format": "tfrecord", "shards": "train.tfrecord"},
        "test": {"format": "tfrecord", "shards": "test.tfrecord"},
        "batch_size": 16,
    }
    (folder / "classify.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def one_device(monkeypatch):
    """Meshes of one device, for which programs compile in a fraction of the time."""
    import jax

    from clip_sharding import make_mesh

    for module in ("clip_train.program", "clip_finetune.tune", "clip_finetune.features"):
        monkeypatch.setattr(f"{module}.make_mesh", lambda config, devices=None: make_mesh(config, jax.devices()[:1]))
