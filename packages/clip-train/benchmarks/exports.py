"""What `clip-train export` writes, opened by PyTorch's libraries: the same embeddings from a picture and from texts.

    python packages/clip-train/benchmarks/exports.py --torch-python /path/to/venv/bin/python

That other environment has `torch`, `transformers` and `open_clip_torch`. Each run here is a tiny random model of one
architecture with a checkpoint of it; what goes in on both sides is a picture's file and sentences, so that processors
and tokenizers are compared too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
TEXTS = ["the digit seven", "a hand-written three in light ink"]
LARGEST = 1e-5


# As their own documentation has it; each gives unit-norm `image_embeds` and `text_embeds`, in torch.
THEIRS = {
    "huggingface": """
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)
outputs = model(**processor(text=texts, images=Image.open(photo), padding="max_length", return_tensors="pt"))
image_embeds, text_embeds = outputs.image_embeds, outputs.text_embeds
""",
    "open_clip": """
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
image_embeds = model.eval().encode_image(preprocess(Image.open(photo)).unsqueeze(0), normalize=True)
text_embeds = model.encode_text(tokenizer(texts), normalize=True)
""",
}


def models():
    """(name, format, config): architectures that the formats hold, with their towers made small."""
    from clip_models import preset

    def small(name, **text):
        config = preset(name)
        size = {"width": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96}
        prepared = {"size": 32, "text_length": 12, "tokenizer": str(DIGITS / "tokenizer")}
        return dataclasses.replace(
            config,
            vision=dataclasses.replace(config.vision, image_size=32, patch_size=8, **size),
            text=dataclasses.replace(config.text, vocab_size=46, max_length=12, **size, **text),
            preprocess=dataclasses.replace(config.preprocess, **prepared),
            projection_dim=None if config.projection_dim is None else 24,
        )

    yield "SigLIP", "huggingface", small("siglip-b-16-224")
    yield "CLIP", "huggingface", small("vit-b-32", eos_token_id=1)
    yield "CLIP", "open_clip", small("vit-b-32", eos_token_id=1)


def export(directory, format, config):
    """Write a run of a random model, and export it as anybody would."""
    import jax
    import jax.numpy as jnp

    from clip_models import init
    from clip_train import Checkpoints, TrainConfig, TrainState
    from clip_train.cli import main
    from clip_train.config_file import config_to_json, parse_config
    from clip_train.output import Output
    from clip_train.setup import resolve

    run = {
        "output_dir": str(directory / "run"),
        "model": {"config": dataclasses.asdict(config)},
        "data": {"train": [{"format": "tfrecord", "shards": str(DIGITS / "shards" / "train-*.tfrecord")}]},
        "global_batch_size": 8,
        "train_samples": 8,
    }
    with Output(directory / "run") as output:
        output.write_config(config_to_json(resolve(parse_config(TrainConfig, run))[0]))
    params = init(config, jax.random.key(0))
    # A first initialisation leaves zeros and ones, which hide what is swapped.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    state = TrainState(step=jnp.int32(1), params=jax.tree.unflatten(tree, noise), opt_state={"n": jnp.zeros(1)})
    with Checkpoints(directory / "run" / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
    assert main(["export", str(directory / "run"), str(directory / "exported"), "--to", format]) == 0


def ours(directory, photo):
    """Embeddings of the picture and of the texts by the run itself."""
    from clip_data import Tokenizer
    from clip_models import encode_image, encode_text, load_pretrained, preprocess_images
    from clip_train.inputs import data_config

    config, params = load_pretrained(directory / "run")
    ids, mask = Tokenizer.of(data_config(config))(TEXTS)
    texts = encode_text(config, params, ids, mask if config.preprocess.mask_padding else None)
    return encode_image(config, params, preprocess_images(config, [photo])), texts


def theirs(python, format, directory, photo):
    """The same of the exported directory, by the library that the format is of."""
    program = f"""
import numpy as np
import torch
from PIL import Image

torch.set_grad_enabled(False)
directory, photo, texts = {str(directory / "exported")!r}, {str(photo)!r}, {json.dumps(TEXTS)}
{THEIRS[format]}
np.savez({str(directory / "theirs.npz")!r}, image=image_embeds.numpy(), text=text_embeds.numpy())
"""
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([python, "-c", program], check=True, env=quiet, stderr=subprocess.DEVNULL)
    return tuple(np.load(directory / "theirs.npz").values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True, help="of an environment with transformers and open_clip_torch")
    args = parser.parse_args()

    from clip_data import SourceConfig, read_records

    record = next(read_records(SourceConfig(format="tfrecord", shards=str(DIGITS / "shards" / "test-*.tfrecord"))))
    print("| model | format | largest difference of a picture's embedding | of a text's |")
    print("|---|---|---|---|")
    worst = 0.0
    for name, format, config in models():
        with tempfile.TemporaryDirectory() as folder:
            (photo := Path(folder, "photo.png")).write_bytes(record.image)
            export(Path(folder), format, config)
            pairs = zip(ours(Path(folder), photo), theirs(args.torch_python, format, Path(folder), photo), strict=True)
            image, text = (float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
        print(f"| {name} | {format} | {image:.1e} | {text:.1e} |", flush=True)
        worst = max(worst, image, text)
    return 0 if worst <= LARGEST else 1


if __name__ == "__main__":
    raise SystemExit(main())
