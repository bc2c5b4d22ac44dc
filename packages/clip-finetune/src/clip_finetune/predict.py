"""`clip-finetune predict`: a classifier's labels and probabilities for pictures or texts, as CSV or Parquet."""

from __future__ import annotations

import csv
import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_data import DataError, SourceConfig, decode_image
from clip_data.formats import FORMAT_BY_EXTENSION
from clip_finetune.backbone import Tower, tower_of
from clip_finetune.classifier import Classifier, load_classifier
from clip_finetune.embedder import Embedder, load_embedder
from clip_finetune.sentence_pairs import Sentences
from clip_finetune.text_files import read_texts
from clip_finetune.texts import tokenizer_of
from clip_models import preprocess_images
from clip_models.preprocess import PatchSequences
from clip_train.config_file import ConfigError, located
from clip_train.screen import make_console, show_facts


def predict(directory: str, images: Sequence[str], to: Path, *, batch_size: int = 64) -> int:
    """Classify pictures and write a table: `image`, `label`, `probability`, and a column for each class.

    Args:
        directory: of the classifier, or of the task that made it.
        images: paths or globs, `**` for folders at any depth.
        to: a file that ends in `.csv` or `.parquet`.
        batch_size: pictures at once.

    Returns:
        The exit status.

    Raises:
        ConfigError: there is no classifier, no picture, or the table's name says no format.
    """
    classifier, params = _open(directory, to, "vision")
    found = [sorted(glob.glob(pattern, recursive=True)) for pattern in images]
    if missing := [pattern for pattern, paths in zip(images, found, strict=True) if not paths]:
        raise ConfigError(f"--images: nothing at {', '.join(missing)}")
    paths = [path for path in dict.fromkeys(itertools.chain.from_iterable(found)) if Path(path).is_file()]
    unreadable: list[str] = []
    names, rows = [], []
    for part, probabilities in _predict(classifier, params, paths, batch_size, unreadable):
        names += part
        rows.append(probabilities)
    if not names:
        raise ConfigError(f"--images: none of {len(paths)} files is a picture; the first: {unreadable[0]}")
    _write(to, classifier, {"image": names}, np.concatenate(rows))
    console = make_console()
    for line in unreadable:
        console.print(f"Left out: {line}", markup=False)
    facts = [("pictures", f"{len(names):,}"), ("left out", f"{len(unreadable):,}"), ("table", str(to))]
    show_facts(console, "clip-finetune predict", facts)
    return 0


def predict_texts(directory: str, texts: str, to: Path, *, batch_size: int = 64) -> int:
    """Classify texts and write a table: `text`, `label`, `probability`, and a column for each class.

    With a model that embeds sentences the columns are `text` and `embedding`, float32 `[e]` of unit norm.

    Args:
        directory: of the classifier or embedding model, or of the task that made it.
        texts: a `.txt` of one text a line; or a table, whose column is caption, txt or text.
        to: a file that ends in `.csv` or `.parquet`.
        batch_size: texts at once.

    Returns:
        The exit status.

    Raises:
        ConfigError: there is no classifier, no text, or the table's name says no format.
    """
    with located("--model"):
        embedder = load_embedder(directory)
    if embedder is not None:
        return _embed(*embedder, texts, to, batch_size)
    classifier, params = _open(directory, to, "text")
    with located("--texts", (OSError, ValueError, DataError)):
        lines = _lines(texts)
    with located("--model"):
        tokenizer = tokenizer_of(classifier.config)
    run = jax.jit(classifier.logits_of_inputs)
    rows = []
    ids, mask = tokenizer(lines)
    for start in range(0, len(lines), batch_size):
        end = min(start + batch_size, len(lines))
        # One shape compiles once: the last batch is filled up with its last text.
        index = np.minimum(np.arange(start, start + batch_size), len(lines) - 1)
        inputs = {"input_ids": ids[index], "attention_mask": mask[index]}
        rows.append(classifier.probabilities(np.asarray(run(params, inputs)))[: end - start])
    _write(to, classifier, {"text": lines}, np.concatenate(rows))
    show_facts(make_console(), "clip-finetune predict", [("texts", f"{len(lines):,}"), ("table", str(to))])
    return 0


def _embed(embedder: Embedder, params: Any, texts: str, to: Path, batch_size: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if to.suffix != ".parquet":
        raise ConfigError(f"--to: embeddings go to a file that ends in .parquet; got {to}")
    with located("--texts", (OSError, ValueError, DataError)):
        lines = _lines(texts)
    vectors = embedder.vectors(params, Sentences(tuple(lines)), batch_size=batch_size)
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    to.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"text": lines, "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}), to
    )
    facts = [("texts", f"{len(lines):,}"), ("width", str(vectors.shape[1])), ("table", str(to))]
    show_facts(make_console(), "clip-finetune predict", facts)
    return 0


def _open(directory: str, to: Path, tower: Tower) -> tuple[Classifier, Any]:
    if to.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--to: a file that ends in .csv or .parquet; got {to}")
    with located("--model"):
        classifier, params = load_classifier(directory)
        if tower_of(classifier.config) != tower:
            flag = "--images" if tower == "text" else "--texts"
            raise ValueError(f"{directory} classifies {'pictures' if tower == 'text' else 'texts'}; give {flag}")
    return classifier, params


def _lines(path: str) -> list[str]:
    if Path(path).suffix == ".txt":
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{path} holds no line")
        return lines
    format = FORMAT_BY_EXTENSION.get(Path(path).suffix)
    if format is None:
        raise ValueError(f"texts are in a .txt, .csv, .tsv or .parquet; got {path}")
    return [text.text for text in read_texts(SourceConfig(format=format, shards=path), labelled=False)]


def _predict(
    classifier: Classifier, params: Any, paths: Sequence[str], batch_size: int, unreadable: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    run = jax.jit(classifier.logits_of_inputs)
    for start in range(0, len(paths), batch_size):
        names, pictures = [], []
        for path in paths[start : start + batch_size]:
            try:
                pictures.append(decode_image(Path(path).read_bytes()))
                names.append(path)
            except (OSError, ValueError) as error:
                unreadable.append(f"{path}: {error}")
        if not names:
            continue
        # One shape compiles once: the last batch is filled up with its last picture.
        full = pictures + [pictures[-1]] * (batch_size - len(pictures))
        prepared: np.ndarray | PatchSequences = preprocess_images(classifier.config, full)
        inputs: Any = {"pixel_values": prepared} if isinstance(prepared, np.ndarray) else prepared
        yield names, classifier.probabilities(np.asarray(run(params, inputs)))[: len(names)]


def _write(to: Path, classifier: Classifier, names: dict[str, list[str]], probabilities: np.ndarray) -> None:
    best = probabilities.argmax(axis=1)
    labels = [classifier.classnames[i] for i in best]
    if classifier.multi_label:
        labels = ["; ".join(np.asarray(classifier.classnames)[row > 0.5]) for row in probabilities]
    columns: dict[str, Any] = {**names, "label": labels, "probability": probabilities.max(axis=1)}
    columns |= {f"p({name})": probabilities[:, i] for i, name in enumerate(classifier.classnames)}
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), to)
        return
    with to.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(
            [value if isinstance(value, str) else f"{value:.6f}" for value in row]
            for row in zip(*columns.values(), strict=True)
        )
