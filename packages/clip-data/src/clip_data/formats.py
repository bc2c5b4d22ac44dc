"""The formats by name, and what a shard's name says of them; it imports next to nothing, for command lines."""

from typing import Literal, get_args

Format = Literal["tfrecord", "webdataset", "parquet", "csv", "tsv", "folder", "class_folder"]
"""What ``SourceConfig.format`` may be."""

FORMATS: tuple[Format, ...] = get_args(Format)
"""The same, to be listed."""

FORMAT_BY_EXTENSION: dict[str, Format] = {
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""The formats whose shards are named by them; a guess, offered to whoever names none."""
