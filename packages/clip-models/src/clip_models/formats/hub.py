"""Repositories of the Hugging Face Hub: fetched once, and kept in the Hub's cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def download(repo: str, patterns: Sequence[str]) -> Path:
    """Fetches the files of a repository that the cache has not.

    Args:
        repo: its name.
        patterns: of the names of the files.

    Returns:
        Their directory, in the cache.

    Raises:
        FileNotFoundError: there is no such repository, or it could not be reached.
    """
    import huggingface_hub  # costs a second, and local models have no use for it

    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo} is not a local directory, and it could not be fetched as a Hugging Face repository "
            f"({type(error).__name__}): check the name and the network, or give a directory."
        ) from error


def find_cached(repo: str) -> Path | None:
    """Returns the directory of what the cache has of a repository, or None where it has nothing; asks no network."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
