"""Hugging Face directories of CLIP, SigLIP, SigLIP 2, their towers alone, ViT and DINOv2."""

from clip_models.formats.huggingface.directory import (
    example_program,
    find_model_type,
    open_huggingface,
    read_directory_config,
    write_huggingface,
)
from clip_models.formats.huggingface.kinds import KINDS

__all__ = [
    "KINDS",
    "example_program",
    "find_model_type",
    "open_huggingface",
    "read_directory_config",
    "write_huggingface",
]
