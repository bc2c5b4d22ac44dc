"""`clip-train embed`: a data set's embeddings as shards of Parquet or NumPy, in the order of the data, resumable."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from clip_data import Batch, Pipeline, Record, SourceConfig
from clip_sharding import to_local
from clip_train.config_file import ConfigError, config_to_json
from clip_train.open_model import OpenModel
from clip_train.output import write_json

EmbedFormat = Literal["parquet", "npy"]
INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """What stands beside an embedding.

    Attributes:
        key: of the record.
        caption: of the record; empty where it has none.
        label: of the record; -1 where it has none.
        shard: the path of the shard it came from.
        row: its number in that shard.
    """

    key: str
    caption: str
    label: int
    shard: str
    row: int


def embed(
    model: OpenModel,
    source: SourceConfig,
    to: Path,
    *,
    format: EmbedFormat = "parquet",
    batch_size: int = 256,
    shard_size: int = 65536,
    dtype: Literal["float32", "float16"] = "float32",
) -> Iterator[int]:
    """Embed the pictures of a source, and write them shard by shard; continue where an earlier start ended.

    `embeddings-00000.parquet` holds the columns of `Row` and `embedding`; as `npy`, `embeddings-00000.npy` holds the
    embeddings `[n, e]` and `embeddings-00000.json` the rows. A shard appears whole or not at all.

    Args:
        model: which.
        source: the pictures; those that cannot be read are left out.
        to: the directory.
        format: of the shards.
        batch_size: pictures encoded at once over all devices.
        shard_size: about how many embeddings a shard holds: the next multiple of the batch size.
        dtype: of the embeddings.

    Yields:
        How many samples of the source are done, after each shard.

    Raises:
        ConfigError: the directory holds something else, or the embeddings of another model or source.
    """
    to.mkdir(parents=True, exist_ok=True)
    batch_size = model.encoders.batch_size(batch_size)
    what = {"model": model.name, "source": config_to_json(source), "format": format, "dtype": dtype}
    index = _open_index(to, what)
    data = model.data(source, tokenizer=None, shuffle=False, num_epochs=1, transform=_with_place)
    with Pipeline(data, global_batch_size=batch_size) as pipeline:
        if index["cursor"] is not None:
            pipeline.seek(index["cursor"])
        batches_per_shard = -(-shard_size // batch_size)
        done = index["num_read"]
        encoded = _encoded(model, pipeline)
        while part := list(itertools.islice(encoded, batches_per_shard)):
            rows = [row for _, rows, _ in part for row in rows]
            embeds = np.concatenate([embeds for embeds, _, _ in part]).astype(dtype)
            _write_shard(to / f"embeddings-{index['num_shards']:05d}", embeds, rows, format)
            done = min(done + len(part) * batch_size, pipeline.num_samples)
            index |= {
                "num_shards": index["num_shards"] + 1,
                "num_rows": index["num_rows"] + len(rows),
                "num_read": done,
                "cursor": part[-1][2],
                "width": embeds.shape[1],
            }
            write_json(to / INDEX, index)
            yield done


def read_index(directory: Path) -> dict[str, Any]:
    """What `embed` says of a directory.

    Raises:
        ConfigError: it holds no embeddings.
    """
    path = directory / INDEX
    if not path.is_file():
        raise ConfigError(
            f"{directory} holds no embeddings; make them: clip-train embed MODEL --data … --to {directory}"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_shards(directory: Path) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """The embeddings `[n, e]` of each shard, as stored, and their rows.

    Args:
        directory: that `embed` wrote.

    Raises:
        ConfigError: it holds no embeddings.
    """
    index = read_index(directory)
    for number in range(index["num_shards"]):
        stem = directory / f"embeddings-{number:05d}"
        if index["format"] == "npy":
            rows = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
            yield np.load(stem.with_suffix(".npy"), mmap_mode="r"), [Row(*row) for row in rows]
        else:
            yield _read_parquet(stem.with_suffix(".parquet"))


def _with_place(record: Record) -> Record:
    # The key is the one text that every batch carries: the place travels with it.
    return dataclasses.replace(record, key=json.dumps([record.key, record.shard, record.row]))


def _encoded(model: OpenModel, pipeline: Pipeline) -> Iterator[tuple[np.ndarray, list[Row], dict[str, Any]]]:
    """Embeddings, rows and the cursor after each batch; the device works on the next one meanwhile."""
    pending: collections.deque[tuple[jax.Array, Batch, dict[str, Any]]] = collections.deque()

    def fetch() -> tuple[np.ndarray, list[Row], dict[str, Any]]:
        embeds, batch, cursor = pending.popleft()
        return to_local(embeds)[batch.mask], _rows(batch), cursor

    for batch in pipeline:
        pending.append((model.encoders.start_images(model.params, batch), batch, pipeline.cursor()))
        if len(pending) > 1:
            yield fetch()
    while pending:
        yield fetch()


def _rows(batch: Batch) -> list[Row]:
    rows = []
    for i in np.flatnonzero(batch.mask):
        key, shard, row = json.loads(batch.key[i])
        label = -1 if batch.label is None else int(batch.label[i])
        rows.append(Row(key=key, caption=batch.caption[i], label=label, shard=shard, row=row))
    return rows


def _open_index(to: Path, what: dict[str, Any]) -> dict[str, Any]:
    if (to / INDEX).exists():
        index = read_index(to)
        if changed := [name for name in what if index[name] != what[name]]:
            there = ", ".join(f"{name} {index[name]!r}" for name in changed)
            raise ConfigError(f"--to: {to} holds other embeddings ({there}); give another directory")
        return index
    if any(path.suffix != ".new" and not path.name.startswith("embeddings-00000.") for path in to.iterdir()):
        raise ConfigError(f"--to: {to} is not empty and holds no embeddings; give a new directory")
    return {**what, "num_shards": 0, "num_rows": 0, "num_read": 0, "cursor": None, "width": None}


def _write_shard(stem: Path, embeds: np.ndarray, rows: list[Row], format: EmbedFormat) -> None:
    if format == "npy":
        write_json(stem.with_suffix(".json"), [dataclasses.astuple(row) for row in rows])
        beside = stem.with_suffix(".new")
        with beside.open("wb") as file:
            np.save(file, embeds)
        beside.replace(stem.with_suffix(".npy"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(embeds).reshape(-1))
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(Row)}
    table = pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, embeds.shape[1])})
    beside = stem.with_suffix(".new")
    pq.write_table(table, beside)
    beside.replace(stem.with_suffix(".parquet"))


def _read_parquet(path: Path) -> tuple[np.ndarray, list[Row]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path).combine_chunks()
    embeds = table["embedding"].combine_chunks()
    width = embeds.type.list_size
    columns = [table[field.name].to_pylist() for field in dataclasses.fields(Row)]
    return embeds.values.to_numpy().reshape(-1, width), [Row(*values) for values in zip(*columns, strict=True)]
