"""A model card for an exported model: what it is, and how it is opened."""

from __future__ import annotations

from pathlib import Path

from clip_models.config import ClipConfig
from clip_models.formats.stored import write_text


def write_model_card(directory: Path, config: ClipConfig, *, program: str, library: str, has_tokenizer: bool) -> None:
    """Writes README.md beside a model, where there is none yet.

    Args:
        directory: of the model.
        config: of the model.
        program: Python that opens the model.
        library: whose format it is, by its name on the Hub.
        has_tokenizer: whether the tokenizer is beside it.
    """
    path = directory / "README.md"
    if path.exists():
        return
    both = config.vision is not None and config.text is not None
    task = "zero-shot-image-classification" if both else "feature-extraction"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "---", "", f"# {directory.resolve().name}", ""]
    lines += [_describe(config), "", "```python", program, "```", ""]
    if config.text is not None and not has_tokenizer:
        known = config.preprocess.tokenizer
        lines += [f"The tokenizer is not part of this directory{f': it is {known}' if known else ''}.", ""]
    changes = ["lower-cased"] * config.preprocess.lower_case + ["freed of punctuation"] * config.preprocess.canonicalize
    if changes:
        lines += [f"Texts are to be {' and '.join(changes)} before they are tokenized.", ""]
    write_text(path, "\n".join(lines))


def _describe(config: ClipConfig) -> str:
    sentences = []
    if (vision := config.vision) is not None:
        height, width = vision.image_shape
        sentences.append(
            f"Image tower: a vision transformer of {vision.num_layers} layers, width {vision.width}, on patches of "
            f"{vision.patch_size} × {vision.patch_size} pixels of images of {height} × {width}."
        )
    if (text := config.text) is not None:
        sentences.append(
            f"Text tower: a transformer of {text.num_layers} layers, width {text.width}, over at most "
            f"{text.max_length} of {text.vocab_size} tokens."
        )
    sentences.append(f"Embeddings have {config.embed_dim} dims.")
    return " ".join(sentences)
