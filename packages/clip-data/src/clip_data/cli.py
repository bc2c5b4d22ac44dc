"""The ``clip-data`` command: verbs and flags. A verb imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clip_data.formats import FORMAT_BY_EXTENSION, FORMATS

if TYPE_CHECKING:
    from clip_data.config import SourceConfig
    from clip_data.filters import Filter

_CLIENT_ERROR = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 when done, 1 where inspect found faults, 2 for a fault in what was asked for."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be any bytes
            stream.reconfigure(errors="backslashreplace")
    # Damaged pictures are reported with their places; OpenCV would write of each to the terminal by itself.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from clip_data.faults import DataError

    try:
        return options.action(options)
    except BrokenPipeError:  # who read the output has enough of it; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (ValueError, OSError, DataError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return _CLIENT_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clip-data", description="Look at image-text shards, and write them.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    inspect = verbs.add_parser(
        "inspect",
        help="say what is in shards and what is wrong with them",
        description="Say what is in shards and what is wrong with them. Ends with 1 where something is.",
    )
    _add_source_arguments(inspect)
    inspect.add_argument("--page", metavar="FILE", help="also write a page with thumbnails, one HTML file")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")
    inspect.add_argument(
        "--sample",
        metavar="N",
        type=int,
        default=10_000,
        help="read this many records, spread evenly, where there are more (default 10000); 0 reads all",
    )
    inspect.set_defaults(action=_inspect)

    write = verbs.add_parser(
        "write",
        help="pack a table, a folder or other shards of pairs into shards",
        description="Pack a table, a folder or other shards of pairs into shards. Ends with 0 where something was left "
        "out, and says what.",
    )
    _add_source_arguments(write)
    write.add_argument("output", metavar="OUTPUT", help="the folder of the shards, new or empty; gs:// or s3:// too")
    write.add_argument(
        "--to", choices=("tfrecord", "webdataset", "parquet"), default="tfrecord", help="format (default tfrecord)"
    )
    write.add_argument("--samples-per-shard", metavar="N", type=int, default=10_000, help="default 10000")
    write.add_argument("--no-verify", dest="verify", action="store_false", help="do not decode every image")
    write.add_argument(
        "--keep-uncaptioned", action="store_true", help="keep records that have neither caption nor label"
    )
    write.set_defaults(action=_write)
    return parser


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shards", nargs="+", metavar="SHARDS", help="paths, globs, {000..123} lists, folders, gs:// or s3:// addresses"
    )
    parser.add_argument("--format", choices=FORMATS, help="of SHARDS; without it, by the first one's extension")
    parser.add_argument("--image-key", metavar="FIELD", default="auto", help="field of the image, or of its path")
    parser.add_argument(
        "--caption-key", metavar="FIELD", action="append", help="field of the caption; given again, one is drawn"
    )
    parser.add_argument("--label-key", metavar="FIELD", help="field of an integer label")
    parser.add_argument(
        "--filter",
        metavar="JSON",
        action="append",
        default=[],
        dest="filters",
        help="""a condition, such as '{"column": "similarity", "min": 0.28}'; may be repeated""",
    )


def _source(options: argparse.Namespace) -> SourceConfig:
    from clip_data.config import SourceConfig

    captions = options.caption_key or ["auto"]
    return SourceConfig(
        format=options.format or _format_of(options.shards),  # pyright: ignore[reportArgumentType]
        shards=tuple(options.shards),
        image_key=options.image_key,
        caption_key=captions[0] if len(captions) == 1 else tuple(captions),
        label_key=options.label_key,
        filters=tuple(map(_filter, options.filters)),
    )


def _format_of(shards: list[str]) -> str:
    formats = {}
    for path in shards:
        extension = os.path.splitext(path)[1].lower()
        is_folder = extension not in FORMAT_BY_EXTENSION and os.path.isdir(os.path.expanduser(path))
        formats[FORMAT_BY_EXTENSION.get(extension, "folder" if is_folder else None)] = path
    if None in formats:
        raise ValueError(
            f"the format of {formats[None]} does not show in its name: give --format, one of {', '.join(FORMATS)}"
        )
    if len(formats) > 1:
        raise ValueError(f"one format at a time: {' and '.join(formats.values())} differ; give --format if they do not")
    return formats.popitem()[0]


def _filter(text: str) -> Filter:
    from clip_data.filters import Filter

    try:
        given: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--filter must be a JSON object, not {text!r} ({error})") from error
    known = Filter.__dataclass_fields__
    if not isinstance(given, dict) or "column" not in given or (given.keys() - known.keys()):
        raise ValueError(f"--filter must be a JSON object with column and any of {', '.join(known)}, not {text!r}")
    return Filter(**given)


def _inspect(options: argparse.Namespace) -> int:
    from clip_data.inspect import inspect_source
    from clip_data.inspect_page import render_page
    from clip_data.inspect_text import render_text

    report = inspect_source(_source(options), sample=options.sample, num_thumbnails=48 if options.page else 0)
    print(json.dumps(report.to_json(), indent=2) if options.json else render_text(report))
    if options.page:
        with open(options.page, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(render_page(report))
        print(f"\nThe page: {options.page}", file=sys.stderr)
    return 1 if report.faults else 0


def _write(options: argparse.Namespace) -> int:
    from clip_data.write import write_shards

    is_terminal = sys.stderr.isatty()

    def progress(num_records: int) -> None:
        if is_terminal:
            print(f"\r{num_records} records", end="", file=sys.stderr, flush=True)

    written = write_shards(
        _source(options),
        options.output,
        format=options.to,
        samples_per_shard=options.samples_per_shard,
        verify=options.verify,
        keep_uncaptioned=options.keep_uncaptioned,
        progress=progress,
    )
    if is_terminal:
        print("\r", end="", file=sys.stderr)
    num_shards = len(written.shards)
    print(f"{written.num_records} records in {num_shards} shard{'s' * (num_shards > 1)}: {options.output}")
    if written.left_out:
        print("Left out or noted:")
        for reason, count in sorted(written.left_out.items()):
            print(f"  {count:>8}  {reason}")
        for fault in written.faults[:10]:
            print(f"  {fault}")
        if len(written.faults) > 10:
            print("  …")
    return 0
