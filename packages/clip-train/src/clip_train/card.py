"""The card of an exported model: what `clip_models` says of any, and how this one was trained and did."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from clip_data.buckets import REMOTE
from clip_models.formats.model_card import write_model_card
from clip_models.formats.tokenizer import read_tokenizer
from clip_train import jax_export
from clip_train.config_file import config_to_json
from clip_train.jsonl import read_jsonl
from clip_train.output import Output
from clip_train.weights import RunModel

_OPEN = """\
from clip_models import load_pretrained  # pip install clip-models

config, params = load_pretrained("DIRECTORY")"""

_USE = {
    "clip-jax": """\
from clip_models import encode_image, preprocess_images

image_embeds = encode_image(config, params, preprocess_images(config, ["photo.jpg"]))  # float32 [b, e], unit norm""",
    "huggingface": """\
from PIL import Image

texts = ["a photo of a cat", "a photo of a dog"]
inputs = processor(text=texts, images=Image.open("photo.jpg"), padding="max_length", return_tensors="pt")
outputs = model(**inputs)
print(outputs.logits_per_image)  # and outputs.image_embeds, outputs.text_embeds""",
    "open_clip": """\
import torch
from PIL import Image

with torch.no_grad():
    image_embeds = model.encode_image(preprocess(Image.open("photo.jpg")).unsqueeze(0), normalize=True)
    text_embeds = model.encode_text(tokenizer(["a photo of a cat", "a photo of a dog"]), normalize=True)
print(image_embeds @ text_embeds.T)""",
}


def complete_card(to: Path, format: str, model: RunModel, directory: str | Path, *, repo: str | None = None) -> None:
    """Write the README.md of an exported model, or go on from the one that its format came with.

    Args:
        to: the exported directory.
        format: of `export_run`.
        model: what was exported.
        directory: of the run.
        repo: by which programs call the model; by default the directory's name.
    """
    path, program = to / "README.md", jax_export.loader() if format == "jax" else _OPEN
    has_tokenizer = read_tokenizer(to).name is not None
    library = "jax" if format == "jax" else "clip-jax"
    write_model_card(to, model.config, program=program.rstrip(), library=library, has_tokenizer=has_tokenizer)
    use = jax_export.example_program(to) if format == "jax" else _USE[format]
    if format in ("huggingface", "open_clip") and (not has_tokenizer or model.config.vision is None):
        use = ""
    with Output(directory) as output:
        sections = [_fenced("python", use) if use else "", *_sections(model, output)]
    card = path.read_text(encoding="utf-8").rstrip() + "\n\n" + "\n\n".join(filter(None, sections)) + "\n"
    if repo is not None:
        card = card.replace("local-dir:DIRECTORY", f"hf-hub:{repo}").replace(
            f"# {to.resolve().name}\n", f"# {repo}\n", 1
        )
        if format == "jax":
            fetch = f'from huggingface_hub import snapshot_download\n\ndirectory = snapshot_download("{repo}")'
            card = card.replace('directory = "DIRECTORY"', fetch)
    path.write_text(card.replace("DIRECTORY", repo or to.name), encoding="utf-8")


def _sections(model: RunModel, output: Output) -> list[str]:
    run = model.run
    config = _public(config_to_json(run))
    rows = read_jsonl(output.metrics)
    row = next((row for row in reversed(rows) if row["step"] == model.step), {})
    kind = {"ema": f"moving averages of the parameters, decay {run.ema.decay if run.ema else ''}", "raw": "parameters"}
    facts = {
        "weights": f"{kind[model.weights]}, after step {model.step:,}",
        "pairs seen": f"{row['samples']:,}" if "samples" in row else None,
        "global batch": f"{run.global_batch_size:,}",
        "loss": run.loss.kind,
        "last training loss": f"{row['loss']:.4f}" if "loss" in row else None,
        "optimizer": f"{run.optimizer.kind}, learning rate {run.optimizer.learning_rate:g}",
        "schedule": f"warm-up {run.schedule.warmup}, then {run.schedule.decay}",
        "precision": run.precision,
        "started from": Path(run.model.pretrained).name if run.model.pretrained else "random initialisation",
        **_environment(output),
    }
    data = [[source["format"], _in_words(source["shards"]), source["weight"]] for source in config["data"]["train"]]
    details = (
        f"<details><summary>The whole config</summary>\n\n{_fenced('json', json.dumps(config, indent=2))}\n\n</details>"
    )
    return [
        "## Training",
        _table(["", ""], [[name, value] for name, value in facts.items() if value is not None]),
        "## Data",
        _table(["format", "shards", "weight"], data),
        "## Evaluation",
        _evaluation(model, output, row),
        details,
    ]


def _evaluation(model: RunModel, output: Output, row: dict[str, Any]) -> str:
    """A table of the last results, and of what weights they are where these are others."""
    results: list[list[Any]] = []
    if output.results.exists():
        measured = json.loads(output.results.read_text(encoding="utf-8"))
        if measured["steps"] == model.step:
            for result in measured["evaluation"]:
                facts = [result["dataset"], result["task"], result["num_samples"]]
                results += [[*facts, name, f"{value:.4g}"] for name, value in result["metrics"].items()]
    if not results:
        tasks = {evaluation.name: evaluation.task for evaluation in model.run.evaluation}
        named = [(name.rpartition("/"), value) for name, value in row.items() if name.rpartition("/")[0] in tasks]
        results = [[name, tasks[name], "", metric, f"{value:.4g}"] for (name, _, metric), value in named]
    if not results:
        return "None was made at this step of the run."
    table = _table(["data", "task", "samples", "metric", "value"], results)
    if model.weights != model.evaluated:
        other = {"ema": "the moving averages", "raw": "the parameters themselves"}[model.evaluated]
        return f"{table}\n\nThese were measured with {other}, which are not the weights that are here."
    return table


def _environment(output: Output) -> dict[str, str]:
    if not output.environment.exists():
        return {}
    known = json.loads(output.environment.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {known['packages'][name]}" for name in ("clip-train", "jax"))
    return {"devices": f"{known['num_devices']} × {known['device_kind']}", "software": versions}


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the folders of the machine it ran on, and without its buckets."""
    tree = {name: value for name, value in config.items() if name not in ("output_dir", "log")}
    return _shorten(tree)


def _shorten(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shorten(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shorten(item) for item in value]
    is_place = isinstance(value, str) and (os.path.isabs(value) or value.startswith(REMOTE))
    return os.path.basename(value.rstrip("/")) if is_place else value


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
