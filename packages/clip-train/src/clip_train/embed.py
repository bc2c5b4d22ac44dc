"""`clip-train embed`: embeddings of pictures and captions as Parquet or NumPy, in the order of the data, resumable."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
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
EmbedWhat = Literal["images", "texts", "both"]
Side = Literal["images", "texts"]
_COLUMNS: dict[Side, str] = {"images": "embedding", "texts": "text_embedding"}
_FIRST = ("embeddings-00000.", "text_embeddings-00000.")  # may be there before the index is
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


_ROW_FIELDS = dataclasses.fields(Row)


def embed(
    model: OpenModel,
    source: SourceConfig,
    to: Path,
    *,
    what: EmbedWhat = "images",
    format: EmbedFormat = "parquet",
    batch_size: int = 256,
    shard_size: int = 65536,
    dtype: Literal["float32", "float16"] = "float32",
) -> Iterator[int]:
    """Embed the pictures or captions of a source, write them shard by shard, and continue an earlier start.

    `embeddings-00000.parquet` holds the columns of `Row`, and `embedding` of the picture or `text_embedding` of the
    caption, or both; as `npy`, `embeddings-00000.npy` and `text_embeddings-00000.npy` hold them, `[n, e]`, and
    `embeddings-00000.json` the rows. A shard appears whole or not at all. `index.json` says of which weights they are:
    a run that has trained on is another model.

    Args:
        model: which.
        source: the samples; those whose picture cannot be read or whose caption is blank are left out, where that is
            embedded. Of several captions of a sample one is, which its row names.
        to: the directory.
        what: is embedded. For texts alone no picture is read, and none need be there.
        format: of the shards.
        batch_size: samples encoded at once over all devices.
        shard_size: about how many embeddings a shard holds: the next multiple of the batch size.
        dtype: of the embeddings.

    Yields:
        How many samples of the source are done, after each shard.

    Raises:
        ConfigError: the directory holds something else, or the embeddings of other weights or another source; or the
            model lacks the tower.
    """
    towers = {"images": model.config.vision, "texts": model.config.text}
    sides: list[Side] = ["images", "texts"] if what == "both" else [what]
    if missing := [side for side in sides if towers[side] is None]:
        raise ConfigError(f"{model.name} has no tower for {missing[0]}; --what {what} needs one")
    if "texts" in sides:
        model.tokenizer()
    to.mkdir(parents=True, exist_ok=True)
    batch_size = model.encoders.batch_size(batch_size)
    wanted = {"source": config_to_json(source), "what": what, "format": format, "dtype": dtype}
    index = _open_index(to, model, wanted)
    without: dict[str, Any] = {"images": {"tokenizer": None}, "texts": {"image_size": None}, "both": {}}[what]
    data = model.data(source, **without, shuffle=False, num_epochs=1, transform=_with_place)
    with Pipeline(data, global_batch_size=batch_size) as pipeline:
        if index["cursor"] is not None:
            pipeline.seek(index["cursor"])
        batches_per_shard = -(-shard_size // batch_size)
        done = index["num_read"]
        encoded = _encoded(model, pipeline, sides)
        while part := list(itertools.islice(encoded, batches_per_shard)):
            rows = [row for _, rows, _ in part for row in rows]
            embeds = {
                _COLUMNS[side]: np.concatenate([arrays[number] for arrays, _, _ in part]).astype(dtype)
                for number, side in enumerate(sides)
            }
            _write_shard(to, index["num_shards"], embeds, rows, format)
            done = min(done + len(part) * batch_size, pipeline.num_samples)
            index |= {
                "num_shards": index["num_shards"] + 1,
                "num_rows": index["num_rows"] + len(rows),
                "num_read": done,
                "cursor": part[-1][2],
                "width": model.config.embed_dim,
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


def read_shards(directory: Path, side: Side | None = None) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """The embeddings `[n, e]` of each shard, as stored, and their rows.

    Args:
        directory: that `embed` wrote.
        side: whose; by default the pictures', where they are embedded.

    Raises:
        ConfigError: it holds no embeddings.
    """
    index = read_index(directory)
    column = _COLUMNS[side or ("texts" if index["what"] == "texts" else "images")]
    for number in range(index["num_shards"]):
        if index["format"] == "npy":
            rows = json.loads(_path(directory, "embeddings", number, "json").read_text(encoding="utf-8"))
            yield np.load(_path(directory, f"{column}s", number, "npy"), mmap_mode="r"), [Row(*row) for row in rows]
        else:
            yield _read_parquet(_path(directory, "embeddings", number, "parquet"), column)


def _path(directory: Path, name: str, number: int, suffix: str) -> Path:
    return directory / f"{name}-{number:05d}.{suffix}"


def _with_place(record: Record) -> Record:
    # The key is the one text that every batch carries: the place travels with it.
    return dataclasses.replace(record, key=json.dumps([record.key, record.shard, record.row]))


_Encoded = tuple[list[np.ndarray], list[Row], dict[str, Any]]


def _encoded(model: OpenModel, pipeline: Pipeline, sides: Sequence[Side]) -> Iterator[_Encoded]:
    """Each side's embeddings, rows and the cursor after each batch; the device works on the next one meanwhile."""
    starts = {"images": model.encoders.start_images, "texts": model.encoders.start_texts}
    pending: collections.deque[tuple[list[jax.Array], Batch, dict[str, Any]]] = collections.deque()

    def fetch() -> _Encoded:
        arrays, batch, cursor = pending.popleft()
        return [to_local(array)[batch.mask] for array in arrays], _rows(batch), cursor

    for batch in pipeline:
        pending.append(([starts[side](model.params, batch) for side in sides], batch, pipeline.cursor()))
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


def check_weights(index: Mapping[str, Any], model: OpenModel, directory: Path) -> None:
    """Make sure that a model is the one whose embeddings a directory holds.

    Args:
        index: from `read_index`.
        model: which.
        directory: that `embed` wrote.

    Raises:
        ConfigError: its weights are others.
    """
    if index["weights"] != model.fingerprint:
        raise ConfigError(
            f"{directory} holds embeddings of other weights than those of {model.name}, such as an older checkpoint's: "
            "embed into a new directory; of a run that trains on, export the model and embed with that"
        )


def _open_index(to: Path, model: OpenModel, wanted: dict[str, Any]) -> dict[str, Any]:
    if (to / INDEX).exists():
        index = read_index(to)
        check_weights(index, model, to)
        if changed := [name for name in wanted if index[name] != wanted[name]]:
            there = ", ".join(f"{name} {index[name]!r}" for name in changed)
            raise ConfigError(f"--to: {to} holds other embeddings ({there}); give another directory")
        return index
    if any(path.suffix != ".new" and not path.name.startswith(_FIRST) for path in to.iterdir()):
        raise ConfigError(f"--to: {to} is not empty and holds no embeddings; give a new directory")
    of = {"model": model.name, "weights": model.fingerprint}
    return {**of, **wanted, "num_shards": 0, "num_rows": 0, "num_read": 0, "cursor": None, "width": None}


def _write_shard(
    to: Path, number: int, embeds: Mapping[str, np.ndarray], rows: Sequence[Row], format: EmbedFormat
) -> None:
    if format == "npy":
        write_json(_path(to, "embeddings", number, "json"), [dataclasses.astuple(row) for row in rows])
        for name, array in embeds.items():
            beside = _path(to, f"{name}s", number, "new")
            with beside.open("wb") as file:
                np.save(file, array)
            beside.replace(_path(to, f"{name}s", number, "npy"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {field.name: [getattr(row, field.name) for row in rows] for field in _ROW_FIELDS}
    for name, array in embeds.items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    beside = _path(to, "embeddings", number, "new")
    pq.write_table(pa.table(columns), beside)
    beside.replace(_path(to, "embeddings", number, "parquet"))


def _read_parquet(path: Path, column: str) -> tuple[np.ndarray, list[Row]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=[*(field.name for field in _ROW_FIELDS), column])
    embeds = table[column].combine_chunks()
    width = embeds.type.list_size
    columns = [table[field.name].to_pylist() for field in _ROW_FIELDS]
    return embeds.values.to_numpy().reshape(-1, width), [Row(*values) for values in zip(*columns, strict=True)]
