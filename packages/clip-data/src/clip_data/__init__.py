"""Image-text shards to deterministic, exactly resumable numpy batches.

The names are loaded when they are first used: ``clip-data --help`` passes through here and must not wait for decoders.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_data.batch import Batch
    from clip_data.config import DataConfig, SourceConfig
    from clip_data.fault_log import SumCounts
    from clip_data.faults import DataError
    from clip_data.fields import Record
    from clip_data.filters import Filter
    from clip_data.image import decode_image
    from clip_data.pipeline import Pipeline
    from clip_data.records import read_records
    from clip_data.sources import list_shards
    from clip_data.text import Tokenizer
    from clip_data.write import write_shards

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Filter",
    "Pipeline",
    "Record",
    "SourceConfig",
    "SumCounts",
    "Tokenizer",
    "decode_image",
    "list_shards",
    "read_records",
    "write_shards",
]

_HOMES = {
    "Batch": "batch",
    "DataConfig": "config",
    "DataError": "faults",
    "Filter": "filters",
    "Pipeline": "pipeline",
    "Record": "fields",
    "SourceConfig": "config",
    "SumCounts": "fault_log",
    "Tokenizer": "text",
    "decode_image": "image",
    "list_shards": "sources",
    "read_records": "records",
    "write_shards": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
