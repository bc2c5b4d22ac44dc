"""Directories of open_clip: its own vision transformers and text towers, and SigLIP's from timm."""

from clip_models.formats.open_clip.config import CLIP_TOKENIZER
from clip_models.formats.open_clip.directory import (
    CONFIG_NAME,
    EXAMPLE_PROGRAM,
    find_losses,
    open_open_clip,
    read_directory_config,
    write_open_clip,
)

__all__ = [
    "CLIP_TOKENIZER",
    "CONFIG_NAME",
    "EXAMPLE_PROGRAM",
    "find_losses",
    "open_open_clip",
    "read_directory_config",
    "write_open_clip",
]
