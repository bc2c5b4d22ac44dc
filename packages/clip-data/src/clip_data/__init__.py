"""Image-text shards to deterministic, exactly resumable numpy batches."""

from clip_data.batch import Batch
from clip_data.config import DataConfig, SourceConfig
from clip_data.faults import DataError
from clip_data.filters import Filter
from clip_data.image import decode_image
from clip_data.pipeline import Pipeline
from clip_data.records import Record, read_records
from clip_data.sources import list_shards
from clip_data.text import Tokenizer

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Filter",
    "Pipeline",
    "Record",
    "SourceConfig",
    "Tokenizer",
    "decode_image",
    "list_shards",
    "read_records",
]
