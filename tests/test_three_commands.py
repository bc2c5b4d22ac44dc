"""A table of pairs, somebody's SigLIP and three commands: what comes out is what transformers opens."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
from transformers import AutoTokenizer

import clip_data.cli
import clip_train.cli
from clip_data import SourceConfig, Tokenizer, read_records
from clip_models import ClipConfig, TextConfig, VisionConfig, encode_text, init, load_pretrained, save_pretrained
from clip_models.formats.tensor_file import open_safetensors
from clip_train import load_run

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"


def test_write_run_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vision = VisionConfig(image_size=32, patch_size=8, width=32, num_layers=2, num_heads=2)
    text = TextConfig(vocab_size=46, max_length=16, width=32, num_layers=2, num_heads=2)
    somebodys = ClipConfig(vision=vision, text=text)
    random = init(somebodys, jax.random.key(0))
    save_pretrained("siglip", somebodys, random, format="huggingface", tokenizer=DIGITS / "tokenizer")
    Path("pictures").mkdir()
    with Path("pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "title"])
        source = SourceConfig(format="tfrecord", shards=str(DIGITS / "shards" / "test-*.tfrecord"))
        for record, _ in zip(read_records(source), range(48), strict=False):
            Path(f"pictures/{record.key}.png").write_bytes(record.image)
            table.writerow([f"pictures/{record.key}.png", record.caption])
    config = {
        "output_dir": "run",
        "model": {"pretrained": "siglip"},
        "data": {"train": [{"format": "tfrecord", "shards": "shards/*.tfrecord"}]},
        "global_batch_size": 16,
        "train_samples": 64,
        "optimizer": {"learning_rate": 1e-3},
    }
    Path("config.json").write_text(json.dumps(config))

    assert clip_data.cli.main(["write", "pairs.csv", "shards", "--image-key", "file", "--caption-key", "title"]) == 0
    assert clip_train.cli.main(["run", "config.json"]) == 0
    assert clip_train.cli.main(["export", "run", "tuned", "--to", "huggingface"]) == 0

    theirs, ours = (open_safetensors([Path(name, "model.safetensors")]) for name in ("siglip", "tuned"))
    assert theirs.shapes == ours.shapes
    kernel = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not np.array_equal(theirs.view(kernel), ours.view(kernel))
    config, params = load_pretrained("tuned")
    run_config, run_params = load_run("run")
    assert (config.vision, config.text) == (run_config.vision, run_config.text)
    jax.tree.map(np.testing.assert_array_equal, params, run_params)

    # Told nothing but to pad, transformers' tokenizer prepares texts as they were in training.
    texts = ["a seven", "the numeral nine in dark ink"]
    prepared = AutoTokenizer.from_pretrained("tuned")(texts, padding="max_length", return_tensors="np")
    assert set(prepared) == {"input_ids"}
    trained_on = Tokenizer("siglip", text_length=config.preprocess.text_length)(texts)[0]
    np.testing.assert_array_equal(prepared["input_ids"], trained_on)
    assert encode_text(config, params, prepared["input_ids"]).shape == (2, config.embed_dim)
