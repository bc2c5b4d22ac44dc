"""`clip-train export --push`: an exported directory to a repository on the Hugging Face Hub, when asked."""

from __future__ import annotations

import re
from pathlib import Path

from clip_train.config_file import ConfigError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_push(repo: str) -> None:
    """Make sure, before anything is made, that a push has a name and a token.

    Args:
        repo: `owner/name`.

    Raises:
        ConfigError: the name is none, or nobody is logged in.
    """
    import huggingface_hub  # takes a second

    if not _NAME.fullmatch(repo):
        raise ConfigError(f"--push: a repository is called owner/name; got {repo!r}")
    if huggingface_hub.get_token() is None:
        raise ConfigError(
            "--push: there is no token of the Hugging Face Hub; log in with 'hf auth login', or set HF_TOKEN to one "
            "that may write"
        )


def push(directory: Path, repo: str, *, private: bool = False) -> str:
    """Upload a directory as one commit; the repository is made where there is none.

    Args:
        directory: whose files are uploaded.
        repo: `owner/name`.
        private: whether a repository that is made is seen by its owners alone.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the Hub refuses, or is not reached; what is in the directory stays there.
    """
    import huggingface_hub

    # Its client's HTTPError, whose package depends on its version.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    hub = huggingface_hub.HfApi(library_name="clip-train")
    try:
        hub.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo, folder_path=directory, commit_message="Export of clip-train"))
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).strip().splitlines()[0]
        raise ConfigError(f"--push: the Hub refuses {repo}: {reason}. {directory} holds the model") from error
    except (HTTPError, OSError) as error:
        raise ConfigError(f"--push: the Hub is not reached: {error}. {directory} holds the model") from error
    except RuntimeError as error:  # the library's, around whatever stopped the upload of a large file
        reason = error.__cause__ or error
        raise ConfigError(f"--push: {error} {reason}. {directory} holds the model") from error
