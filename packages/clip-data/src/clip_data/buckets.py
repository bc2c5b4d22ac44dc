"""Objects in buckets, read and written through failures: retried with jitter, continued where the last read ended.

Credentials are those that ``pyarrow.fs`` finds. Other endpoints are named by the variables that the stores' own tools
read: ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, and ``STORAGE_EMULATOR_HOST``, which is reached anonymously.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

__all__ = [
    "REMOTE",
    "RemoteShard",
    "check_prefix",
    "delete_object",
    "list_below",
    "list_objects",
    "read_object",
    "write_object",
]

REMOTE = ("gs://", "s3://")

_CHUNK_BYTES = 8 << 20
_DEADLINE_SECONDS = 300.0  # without a byte
_STALL_SECONDS = 60.0  # of one request
_WRITE_ATTEMPTS = 5  # of one request to S3
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 20.0
# What a retry does not change, in the words of the stores' clients, which pyarrow passes on as OSError.
_FINAL = ("ACCESS_DENIED", "PERMISSION_DENIED", "UNAUTHENTICATED", "NO_SUCH_BUCKET", "NO_SUCH_KEY")
# Off Google's machines, where nobody can be asked for credentials that are not here: both words in one message.
_NO_CREDENTIALS = ("access token", "resolve host")
_SAID_AFTER = 4  # failures on end, and again after each time as many

T = TypeVar("T")
logger = logging.getLogger("clip_data")


class RemoteShard:
    """A shard from a bucket, fetched whole: one long read instead of thousands of short ones.

    Args:
        path: ``gs://`` or ``s3://``.

    Raises:
        OSError: It cannot be read; the message names it.
    """

    def __init__(self, path: str):
        self.path = path
        self._data = read_object(path)
        self.size = len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Returns ``length`` bytes from ``offset`` on, fewer only at the end."""
        return bytes(self._data[offset : offset + length])


def read_object(path: str, start: int = 0, length: int | None = None) -> memoryview:
    """Reads an object, or a part of it.

    Args:
        path: ``gs://`` or ``s3://``.
        start: First byte.
        length: So many bytes. None: all that follow.

    Returns:
        The bytes; fewer where the object ends before.

    Raises:
        FileNotFoundError: There is none.
        OSError: It may not be read, or gave no byte for five minutes, whatever was tried.
        ValueError: It was replaced by another while it was read.
    """
    filesystem, inner = _filesystem(path)

    def open_it() -> tuple[Any, int]:
        info = filesystem.get_file_info(inner)  # not the file's own size(), for which pyarrow waits with Python's lock
        if not info.is_file:
            raise FileNotFoundError(f"there is no object {path}")
        return filesystem.open_input_file(inner), info.size

    stream, size = _retried(path, open_it)
    end = size if length is None else min(start + length, size)
    data, offset = memoryview(bytearray(max(end - start, 0))), start
    retries = _Retries(path)
    while offset < end:
        try:
            if stream is None:
                stream, now = _in_time(open_it)
                if now != size:
                    raise ValueError(f"{path} changed its size from {size} to {now} bytes while it was read")
            if stream.closed:  # as pyarrow's of GCS is from the start where its first request failed
                raise OSError("the store closed the connection")
            chunk = _in_time(functools.partial(stream.read_at, min(_CHUNK_BYTES, end - offset), offset))
            if not chunk:
                raise OSError("the store closed the connection")
        except OSError as error:
            stream = None
            retries.wait(error)
        else:
            data[offset - start : offset - start + len(chunk)] = chunk
            offset += len(chunk)
            retries.restart()
    return data


def list_objects(pattern: str) -> list[str]:
    """Lists the objects that a path or glob names, sorted.

    Args:
        pattern: ``gs://`` or ``s3://``.

    Raises:
        OSError: The store cannot be asked; the message names the pattern.
    """
    from pyarrow import fs

    filesystem, inner = _filesystem(pattern)
    if not glob.has_magic(inner):
        info = _retried(pattern, lambda: filesystem.get_file_info(inner))
        return [pattern] if info.type == fs.FileType.File else []
    parts = inner.split("/")
    depth = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    selector = fs.FileSelector("/".join(parts[:depth]), recursive=len(parts) > depth + 1, allow_not_found=True)
    scheme = pattern[: pattern.index("://") + 3]
    return sorted(
        scheme + info.path
        for info in _retried(pattern, lambda: filesystem.get_file_info(selector))
        if info.type == fs.FileType.File
        and info.path.count("/") == inner.count("/")
        and all(map(fnmatch.fnmatchcase, info.path.split("/"), parts))
    )


def write_object(path: str, content: str | os.PathLike[str] | Sequence[memoryview]) -> None:
    """Writes an object.

    Args:
        path: ``gs://`` or ``s3://``; an existing object is replaced.
        content: A local file that holds it, or its bytes, one after the other.

    Raises:
        OSError: It may not be written, or was not for five minutes, whatever was tried; the message names it.
    """
    from pyarrow import ArrowInvalid

    filesystem, inner = _filesystem(path, writes=True)
    furthest = 0
    retries = _Retries(path)
    while True:
        sent = 0
        try:
            with filesystem.open_output_stream(inner) as stream:
                for chunk in _chunks(content):
                    stream.write(chunk)
                    sent += len(chunk)
                    if sent > furthest:
                        furthest = sent
                        retries.restart()
            written = filesystem.get_file_info(inner).size
            if written != sent:
                raise OSError(f"{written} bytes arrived of {sent}")
        except (OSError, ArrowInvalid) as error:  # the latter is what an upload out of step is answered with
            kind = type(error) if isinstance(error, OSError) else OSError
            retries.wait(kind(f"{path} cannot be written: {error}"))
        else:
            return


def _chunks(content: str | os.PathLike[str] | Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    if isinstance(content, str | os.PathLike):
        with open(content, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    else:
        for data in content:
            for start in range(0, len(data), _CHUNK_BYTES):
                yield data[start : start + _CHUNK_BYTES]


def delete_object(path: str) -> None:
    """Deletes an object, if there is one.

    Args:
        path: ``gs://`` or ``s3://``.

    Raises:
        OSError: It cannot be deleted.
    """
    filesystem, inner = _filesystem(path, writes=True)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inner)


def check_prefix(path: str) -> None:
    """Checks that there is a bucket, and nothing in it below a prefix.

    Args:
        path: ``gs://`` or ``s3://``.

    Raises:
        FileExistsError: Some object is below it.
        FileNotFoundError: There is no such bucket.
        OSError: The store cannot be asked.
    """
    for found in list_below(path):
        raise FileExistsError(f"{path} holds {found} already: name a folder that is new or empty")


def list_below(path: str) -> dict[str, int]:
    """Lists all objects below a prefix.

    Args:
        path: ``gs://`` or ``s3://``.

    Returns:
        The size in bytes of each, by its name from the prefix on, sorted.

    Raises:
        FileNotFoundError: There is no such bucket.
        OSError: The store cannot be asked.
    """
    from pyarrow import fs

    filesystem, inner = _filesystem(path.rstrip("/"))
    bucket = inner.partition("/")[0]
    if _retried(path, lambda: filesystem.get_file_info(bucket)).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"there is no bucket {bucket} for {path}")
    selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
    found = _retried(path, lambda: filesystem.get_file_info(selector))
    return {info.path.removeprefix(f"{inner}/"): info.size for info in sorted(found, key=_path) if info.is_file}


def _path(info: Any) -> str:
    return info.path


class _Retries:
    """Waits between attempts, longer each time and never as long as another process, until it gives up."""

    def __init__(self, path: str):
        self._path = path
        self.restart()

    def restart(self) -> None:
        """Something was received: the deadline and the waits begin anew."""
        self._num_failed = 0
        self._deadline = time.monotonic() + _DEADLINE_SECONDS

    def wait(self, error: OSError) -> None:
        """Waits after a failure.

        Raises:
            OSError: The failure is final, or the deadline has passed.
        """
        text = str(error)
        if isinstance(error, FileNotFoundError | PermissionError) or any(word in text for word in _FINAL):
            raise error
        if all(word in text for word in _NO_CREDENTIALS):
            raise PermissionError(
                f"no credentials for {self._path}: set GOOGLE_APPLICATION_CREDENTIALS, or run "
                f"gcloud auth application-default login ({text[:200]})"
            ) from error
        self._num_failed += 1
        if time.monotonic() > self._deadline:
            raise OSError(
                f"nothing of {self._path} went through for {_DEADLINE_SECONDS:g} seconds, in {self._num_failed} "
                f"attempts; the last one: {error}"
            ) from error
        longest = min(_FIRST_WAIT_SECONDS * 2**self._num_failed, _LONGEST_WAIT_SECONDS)
        seconds = random.uniform(0, longest)  # affects when a read is tried again, and nothing that is read
        is_news = self._num_failed >= _SAID_AFTER and self._num_failed.bit_count() == 1
        message = "%s: %d attempts failed, the next one is in %.1f s: %.500s"
        logger.log(logging.WARNING if is_news else logging.DEBUG, message, self._path, self._num_failed, seconds, text)
        time.sleep(seconds)


def _retried(path: str, call: Callable[[], T]) -> T:
    retries = _Retries(path)
    while True:
        try:
            return _in_time(call)
        except OSError as error:
            retries.wait(error)


def _in_time(call: Callable[[], T]) -> T:
    """Calls, in a thread that is left behind if the store stalls: its client may wait for ever."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised again in the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="clip-data-bucket", daemon=True).start()
    try:
        return future.result(timeout=_STALL_SECONDS)
    except FutureTimeoutError as error:
        raise OSError(f"no answer for {_STALL_SECONDS:g} seconds") from error


def _filesystem(path: str, *, writes: bool = False) -> tuple[Any, str]:
    """Returns pyarrow's filesystem for a URL and the path inside it.

    Reads are retried here, for the clients do not continue within an object; writes by the clients first, part by part,
    and with their own limits of time: a stream that were left behind would complete its object later.
    """
    scheme, _, inner = path.partition("://")
    if scheme == "gs":
        return _gcs(os.environ.get("STORAGE_EMULATOR_HOST", ""), writes=writes), inner
    return _s3(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""), writes=writes), inner


@functools.cache
def _s3(endpoint: str, *, writes: bool) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
    if writes:
        options["request_timeout"] = _STALL_SECONDS
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=_WRITE_ATTEMPTS if writes else 1)
    return fs.S3FileSystem(**options, retry_strategy=retries)


@functools.cache
def _gcs(endpoint: str, *, writes: bool) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {}
    if endpoint:
        url = urlsplit(endpoint if "//" in endpoint else f"http://{endpoint}")
        options = {"endpoint_override": url.netloc, "scheme": url.scheme, "anonymous": True}
    return fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=_STALL_SECONDS if writes else 1))
