"""From a JSON file and `--set` flags to a frozen dataclass, and back; what the fields mean is left to the dataclass.

JSON may hold `//` comments and a `"$schema"` key. Every fault is one `ConfigError` that names the path in the config,
what arrived and the nearest valid choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from clip_data import DataError
from clip_data.buckets import REMOTE, read_object

T = TypeVar("T")

# Fields that hold a path whatever they look like, and fields that hold either a path or a name known elsewhere.
_PATHS = frozenset({"output_dir", "shards", "uids", "run"})
_PATHS_OR_NAMES = frozenset({"model", "pretrained", "tokenizer", "classnames", "templates"})
_FAULTS = (ValueError, OSError, ImportError, DataError)
_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*')


STRICT = pydantic.ConfigDict(extra="forbid")
"""As a dataclass's `__pydantic_config__`: unknown keys are refused, in it and in the dataclasses inside it."""


class ConfigError(ValueError):
    """A fault in what the user asked for: shown as one message, without a traceback."""


def read_config(cls: type[T], file: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a config file into a dataclass.

    Args:
        cls: a frozen dataclass, with `STRICT` as its `__pydantic_config__`.
        file: JSON, with `//` comments if wanted; a path, `gs://` or `s3://`. Relative paths in a local one are relative
            to the file.
        overrides: `"optimizer.learning_rate=1e-3"`: a dotted path (list items by number), `=`, and JSON or a bare
            string. Relative paths in them are relative to the working directory.

    Raises:
        ConfigError: with one line per fault.
    """
    tree = read_json(file)
    tree.pop("$schema", None)
    tree = _rebase(tree, Path.cwd() if _in_bucket(file) else Path(file).expanduser().resolve().parent)
    for override in overrides:
        set_field(tree, override)
    return parse_config(cls, tree)


def parse_config(cls: type[T], tree: dict[str, Any]) -> T:
    """Validate a tree of JSON values as the dataclass `cls`.

    Raises:
        ConfigError: with one line per fault.
    """
    try:
        return _adapter(cls).validate_python(_filled(cls, tree))
    except pydantic.ValidationError as error:
        lines = dict.fromkeys(_explain(cls, fault) for fault in error.errors(include_url=False))
        raise ConfigError("\n".join(lines)) from None


def config_to_json(config: Any) -> dict[str, Any]:
    """The dataclass as a tree of JSON values, defaults included; `parse_config` gives the same dataclass back."""
    return _adapter(type(config)).dump_python(config, mode="json")


def schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a config, for editors."""
    made = _adapter(cls).json_schema()
    made.setdefault("properties", {})["$schema"] = {"type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _filled(cls: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Completes what a tree says of a part whose default is not its class's own: one field given changes that alone."""
    filled = dict(tree)
    for field in dataclasses.fields(cls):
        given, default = tree.get(field.name), field.default
        if isinstance(given, dict) and dataclasses.is_dataclass(default) and not isinstance(default, type):
            kind = getattr(default, "kind", None)
            if given.get("kind", kind) == kind:
                filled[field.name] = {**_departures(default), **_filled(type(default), given)}
    return filled


def _departures(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not its class's defaults, as JSON values."""
    own = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in config_to_json(config).items() if getattr(config, name) != own[name]}


@contextlib.contextmanager
def located(path: str, faults: tuple[type[Exception], ...] = _FAULTS) -> Iterator[None]:
    """Give a fault raised inside the path in the config that caused it.

    Args:
        path: in the config.
        faults: which exceptions are faults of what was asked for; any other is one of ours, and passes.

    Raises:
        ConfigError: in their place.
    """
    try:
        yield
    except ConfigError:
        raise
    except faults as error:
        raise ConfigError(f"{path}: {error}") from error


@functools.cache
def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cls)


def read_json(file: str | Path) -> dict[str, Any]:
    """A JSON object from a file, in which `//` comments may stand.

    Args:
        file: a path, `gs://` or `s3://`.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    try:
        data = read_object(str(file)) if _in_bucket(file) else Path(file).expanduser().read_bytes()
        text = bytes(data).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not a JSON text in UTF-8") from None
    # Comments become spaces, so that the line and column of an error stay true.
    bare = _STRING_OR_COMMENT.sub(lambda m: m[1] or " " * len(m[0]), text)
    try:
        tree = json.loads(bare)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise ConfigError(f"{file}, line {error.lineno}, column {error.colno}: {error.msg}: {line!r}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: a config is a JSON object {{...}}; got {type(tree).__name__}")
    return tree


def _in_bucket(file: str | Path) -> bool:
    return str(file).startswith(REMOTE)


def set_field(tree: dict[str, Any], override: str) -> None:
    """Set a field of a tree of JSON values, by an override as in `read_config`.

    Raises:
        ConfigError: it names no place in the tree.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set takes path=value, such as data.seed=1; got {override!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = dotted.split(".")
    value = _rebase({last: value}, Path.cwd())[last]
    node: Any = tree
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, part, override)]
        elif isinstance(node.get(part), (dict, list)):
            node = node[part]
        elif node.get(part) is None:
            node[part] = {}
            node = node[part]
        else:
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list[Any], part: str, override: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise ConfigError(f"--set {override}: {part!r} must be the number of a list item, 0 to {len(items) - 1}")


def _rebase(node: Any, base: Path, key: str = "") -> Any:
    """Make the paths in a tree absolute, taking relative ones from `base`."""
    if isinstance(node, dict):
        return {name: _rebase(value, base, name) for name, value in node.items()}
    if isinstance(node, list):
        return [_rebase(item, base, key if key in _PATHS or isinstance(item, dict) else "") for item in node]
    if not isinstance(node, str) or key not in _PATHS | _PATHS_OR_NAMES or "://" in node:
        return node
    path = Path(node).expanduser()
    if key in _PATHS or node.startswith((".", "~")) or (base / path).exists():
        # Not Path.resolve: a symbolic link that the user named stays as named.
        return os.path.normpath(base / path)
    return node


def _explain(cls: type, fault: Any) -> str:
    loc, given = fault["loc"], fault["input"]
    owner, parts = _owner(cls, loc)
    path = ".".join(parts) or "the config"
    kind = fault["type"]
    if kind == "union_tag_invalid":
        choices = re.findall(r"'([^']*)'", fault["ctx"]["expected_tags"])
        near = difflib.get_close_matches(fault["ctx"]["tag"], choices, n=1, cutoff=0.5)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        return f"{path}.kind: must be one of {', '.join(choices)}; got {fault['ctx']['tag']!r}{hint}"
    if kind == "unexpected_keyword_argument":
        valid = sorted(field.name for field in dataclasses.fields(owner))
        near = difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        known = f"Did you mean {near[0]!r}?" if near else f"Valid here: {', '.join(valid)}."
        return f"{path}: unknown key. {known}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: required, and missing"
    if kind == "literal_error":
        expected = fault["ctx"]["expected"]
        choices = re.findall(r"'([^']*)'", expected)
        near = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        return f"{path}: must be {expected}; got {given!r}{hint}"
    if kind == "value_error":
        return f"{path}: {fault['ctx']['error']}"
    message = fault["msg"].removeprefix("Input should be ")
    return f"{path}: must be {message}; got {_short(given)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _owner(cls: Any, loc: Sequence[Any]) -> tuple[Any, list[str]]:
    """The dataclass that holds the end of a location, and the location as the user wrote it, without unions' kinds."""
    parts: list[str] = []
    hint: Any = cls
    for part in loc:
        tagged = _tagged(hint)
        if part in tagged:
            hint = tagged[part]
            continue
        parts.append(str(part))
        if dataclasses.is_dataclass(found := _dataclass_in(hint)) and not isinstance(part, int):
            cls = found
            hint = typing.get_type_hints(found, include_extras=True).get(part)
    return cls, parts


def _tagged(hint: Any) -> dict[str, Any]:
    """The members of a union whose kinds are told apart, by kind."""
    while typing.get_origin(hint) is typing.Annotated and not any(
        isinstance(extra, pydantic.Tag) for extra in hint.__metadata__
    ):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    return {
        extra.tag: typing.get_args(member)[0]
        for member in typing.get_args(hint)
        if typing.get_origin(member) is typing.Annotated
        for extra in member.__metadata__
        if isinstance(extra, pydantic.Tag)
    }


def _dataclass_in(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) is typing.Annotated:
        return _dataclass_in(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list):
        return next((found for arg in typing.get_args(hint) if (found := _dataclass_in(arg))), None)
    return None
