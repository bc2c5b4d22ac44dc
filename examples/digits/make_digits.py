"""Makes this directory's shards, tokenizer and prompts from the digits that ship with scikit-learn.

The pictures are the 1,797 test digits of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998,
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49), licensed CC BY 4.0. Changes made here: enlarged from
8x8 to 32x32 pixels, drawn as dark ink on white, stored as WebP, and given captions.

The shards have the schema that img2dataset writes, plus an integer ``label``. The same versions of the libraries give
the same bytes. Run it with

    uv run --group examples python examples/digits/make_digits.py
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clip_data.tfrecord import write_examples

HERE = Path(__file__).parent
SEED = 0
SIZE = 32
NUM_TEST = 360
NUM_TRAIN_SHARDS = 3
TEXT_LENGTH = 12
CLASSNAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = [
    "{c}",
    "the number {c}",
    "the digit {c}",
    "a handwritten {c}",
    "handwritten number {c}",
    "handwritten digit {c}",
    "a photo of the digit {c}",
    "a scan of the number {c}",
    "a small picture of the digit {c}",
    "the numeral {c} in dark ink",
    "the digit {c} written by hand",
    "number {c} on white paper",
]
WITH_ARTICLE = ["{a} {c}", "somebody wrote {a} {c}", "a picture of {a} {c}"]  # captions only: no template says a or an


def draw(pixels: np.ndarray) -> bytes:
    """Returns a WebP file of an [8, 8] picture with values 0 (paper) to 16 (ink)."""
    paper = Image.fromarray((255 - pixels * (255 / 16)).astype(np.float32))
    smooth = np.asarray(paper.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    out = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).round().astype(np.uint8)).convert("RGB").save(out, "WEBP", quality=80, method=6)
    return out.getvalue()


def caption(label: int, rng: np.random.Generator) -> str:
    """Draws one of the phrasings, with the numeral or the word."""
    phrasings = TEMPLATES + WITH_ARTICLE
    phrasing = phrasings[rng.integers(len(phrasings))]
    name = str(label) if rng.random() < 0.5 else CLASSNAMES[label]
    return phrasing.format(c=name, a="an" if label == 8 else "a")


def write_shard(name: str, number: int, rows: np.ndarray, images: np.ndarray, labels: np.ndarray, rng) -> None:
    """Writes one shard with its two sidecars, as img2dataset does."""
    examples = []
    for position, row in enumerate(rows):
        text = caption(int(labels[row]), rng)
        examples.append(
            {
                "label": int(labels[row]),
                "caption": text,
                "url": "https://doi.org/10.24432/C50P49",
                "key": f"{number:05d}{position:03d}",
                "status": "success",
                "error_message": None,
                "width": SIZE,
                "height": SIZE,
                "original_width": 8,
                "original_height": 8,
                "exif": "{}",
                "sha256": hashlib.sha256(images[row].astype(np.uint8).tobytes()).hexdigest(),
                "txt": text,
                "webp": draw(images[row]),
            }
        )
    path = HERE / "shards" / name
    write_examples(path.with_suffix(".tfrecord"), examples)
    metadata = [{k: v for k, v in example.items() if k not in ("txt", "webp")} for example in examples]
    sizes = [pa.field(k, pa.int32()) for k in ("width", "height", "original_width", "original_height")]
    strings = {
        k: pa.field(k, pa.string()) for k in ("caption", "url", "key", "status", "error_message", "exif", "sha256")
    }
    fields = {"label": pa.field("label", pa.int64()), **strings, **{field.name: field for field in sizes}}
    pq.write_table(
        pa.Table.from_pylist(metadata, pa.schema([fields[k] for k in metadata[0]])), path.with_suffix(".parquet")
    )
    stats = {"count": len(rows), "successes": len(rows), "failed_to_download": 0, "failed_to_resize": 0}
    stats |= {"duration": 0.0, "start_time": 0.0, "end_time": 0.0, "status_dict": {"success": len(rows)}}
    path.with_name(f"{name}_stats.json").write_text(json.dumps(stats, indent=4) + "\n")


def write_tokenizer() -> None:
    """Writes a word-level tokenizer of all words of captions, in SigLIP's manner: lower case, eos, padding."""
    words = set(CLASSNAMES) | {str(digit) for digit in range(10)} | {"a", "an"}
    words |= {word for phrasing in TEMPLATES + WITH_ARTICLE for word in phrasing.split() if "{" not in word}
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(HERE / "tokenizer")
    config = HERE / "tokenizer" / "tokenizer_config.json"  # a class name that transformers 4 knows as well as 5
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def main() -> None:
    """Makes everything anew."""
    (HERE / "shards").mkdir(exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    train, test = train_test_split(np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=SEED)
    rng = np.random.default_rng(SEED)
    for number, rows in enumerate(np.array_split(train, NUM_TRAIN_SHARDS)):
        write_shard(f"train-{number:05d}", number, rows, images, labels, rng)
    write_shard("test-00000", NUM_TRAIN_SHARDS, test, images, labels, rng)
    write_tokenizer()
    (HERE / "classnames.txt").write_text("\n".join(CLASSNAMES) + "\n")
    (HERE / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")


if __name__ == "__main__":
    main()
