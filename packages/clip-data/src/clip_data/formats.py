"""The formats by name, and what a shard's name says of them; it imports nothing, for the sake of command lines."""

FORMATS = ("tfrecord", "webdataset", "parquet", "csv", "tsv", "folder", "class_folder")
"""What ``SourceConfig.format`` may be."""

FORMAT_BY_EXTENSION = {
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""The formats whose shards are named by them; a guess, offered to whoever names none."""
