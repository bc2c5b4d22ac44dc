import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_data import DataConfig, SourceConfig
from clip_data.tfrecord import write_examples

WORDS = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "number", *map(str, range(40))]


@pytest.fixture
def encode():
    """Encodes an uint8 array, or a solid colour, as an image file."""

    def encode(pixels=(200, 30, 60), *, form="PNG", size=(8, 8), **options):
        image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new("RGB", size, pixels)
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    return encode


@pytest.fixture
def examples(encode):
    """Makes examples n to m, each with a colour, caption and label of its own."""

    def examples(first, last):
        return [
            {
                "key": f"{n:08d}",
                "webp": encode((n * 5 % 256, n % 256, 255 - n % 256), form="WEBP", lossless=True),
                "caption": f"a photo of number {n}",
                "label": n,
            }
            for n in range(first, last)
        ]

    return examples


@pytest.fixture
def tokenizer_dir(tmp_path):
    """A word-level tokenizer that ends texts with </s>, as a directory that transformers loads."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    added = [
        {"id": i, "content": WORDS[i], "special": True}
        | dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
        for i in range(3)
    ]
    end = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    template = {
        "type": "TemplateProcessing",
        "special_tokens": {"</s>": end},
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    }
    template["single"] = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": template, "decoder": None, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return str(folder)


@pytest.fixture
def shards(tmp_path, examples):
    """Four TFRecord shards of 7, 12, 5 and 9 records, numbered through."""
    ends = [0, 7, 19, 24, 33]
    for i in range(4):
        write_examples(tmp_path / f"{i:05d}.tfrecord", examples(ends[i], ends[i + 1]))
    return str(tmp_path / "*.tfrecord")


@pytest.fixture
def config(shards):
    """A config of the shards, without a tokenizer unless told."""

    def config(pattern=shards, **options):
        options = {"image_size": 8, "tokenizer": None, "text_length": 8, "block_shards": 2, **options}
        return DataConfig(sources=(SourceConfig(format="tfrecord", shards=pattern),), **options)

    return config
