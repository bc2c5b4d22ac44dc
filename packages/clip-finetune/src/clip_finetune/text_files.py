"""Texts and their labels out of tables, and of shards whose pictures, if any, are left alone."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from clip_data import SourceConfig
from clip_data.fields import CAPTION_KEYS, LABEL_KEYS
from clip_data.records import IndexedShard, list_source
from clip_data.sources import open_shard

_NO_TEXTS = "texts are in tables or shards, not in a {}: give csv, tsv, parquet or shards"
_TABLES = {"csv": ",", "tsv": "\t"}


class Text(NamedTuple):
    """One text.

    Attributes:
        text: itself.
        label: a class, by number or name; or a list of such.
        shard: where it came from.
        row: its number there.
    """

    text: str
    label: Any
    shard: str
    row: int


def read_texts(source: SourceConfig, *, labelled: bool = True) -> list[Text]:
    """Reads the texts of a source, with their labels.

    Args:
        source: `caption_key` names the text's field, by default the first of caption, txt and text; `label_key` the
            label's, by default cls or label.
        labelled: whether each must have a label.

    Raises:
        ValueError: there is no such field, or a format without texts.
        OSError: it cannot be read.
    """
    keys = text_keys(source)
    labels = LABEL_KEYS if source.label_key is None else (source.label_key,)
    texts: list[Text] = []
    for path in list_source(source):
        for row, fields in enumerate(fields_of(source, path)):
            key = next((name for name in keys if fields.get(name)), None)
            label = next((fields[name] for name in labels if fields.get(name) is not None), None)
            if label is None and labelled:
                raise ValueError(
                    f"no label in {' or '.join(labels)} of row {row} of {path}, whose fields are {', '.join(fields)}; "
                    "name its field as label_key"
                )
            if key is not None:
                texts.append(Text(decoded(fields[key]), None if label is None else _plain(label), path, row))
        if not texts:
            raise ValueError(f"no text in {' or '.join(keys)} of {path}; name its field as caption_key")
    return texts


def text_keys(source: SourceConfig) -> tuple[str, ...]:
    """The fields that may hold a row's text; the first that does is it."""
    wanted = source.caption_key
    return CAPTION_KEYS if wanted == "auto" else (wanted,) if isinstance(wanted, str) else tuple(wanted)


def fields_of(source: SourceConfig, path: str) -> Iterator[dict[str, Any]]:
    """The fields of each row of a table, or of each record of a shard.

    Raises:
        ValueError: it is no such file, or one without texts.
    """
    if source.format in ("folder", "class_folder"):
        raise ValueError(_NO_TEXTS.format(source.format))
    if source.format not in (*_TABLES, "parquet"):
        yield from IndexedShard(source, path).fields()
        return
    import pyarrow as pa

    shard = open_shard(path)
    data = io.BytesIO(shard.read_at(0, shard.size))
    try:
        if source.format == "parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(data)
        else:
            import pyarrow.csv as pacsv

            options = pacsv.ParseOptions(delimiter=_TABLES[source.format], newlines_in_values=True)
            table = pacsv.read_csv(data, parse_options=options)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{os.path.basename(path)} is no {source.format} file: {str(error).splitlines()[0]}"
        ) from error
    yield from table.to_pylist()


def decoded(value: Any) -> str:
    """A field as text."""
    if isinstance(value, list):
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _plain(label: Any) -> Any:
    """A label as int or str, or a list of these."""
    if isinstance(label, list | tuple | np.ndarray):
        return [_plain(one) for one in label]
    if isinstance(label, str | bytes):
        text = decoded(label).strip()
        return int(text) if text.isdigit() else text
    try:
        return operator.index(label)
    except TypeError:
        raise ValueError(f"a label is a whole number, a name, or a list of these; got {label!r:.60}") from None


def labels_of(label: Any) -> list[Any]:
    """A label, or several, as a list."""
    return label if isinstance(label, list) else [label]
