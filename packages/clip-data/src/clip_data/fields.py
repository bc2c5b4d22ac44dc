"""Which of a record's fields is its image, its caption and its label: from what is stored to a ``Record``."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_data.faults import RecordError
from clip_data.picture import is_picture

if TYPE_CHECKING:
    from clip_data.config import SourceConfig

__all__ = ["CAPTION_KEYS", "IMAGE_KEYS", "LABEL_KEYS", "Record", "parse_json", "to_record"]

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "image")
CAPTION_KEYS = ("caption", "txt", "text")
LABEL_KEYS = ("cls", "label")
_NOTHING = (None, b"", "")  # how the formats store null
_MAX_DEPTH = 64  # of lists and objects in one another: what walks through them calls itself


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it is stored.

    Args:
        key: Its key, for people; not always unique.
        image: The bytes of an image file, not yet looked at; ``b""`` where only texts are read.
        caption: Its text, ``""`` where it has none.
        label: Its class, or None.
        metadata: All other fields.
        shard: Path of the shard it came from.
        row: Its number in the shard.
        offset: Byte offset of its data in the shard, where its format has such places.
        caption_is_utf8: False where bytes of the caption had to be replaced by U+FFFD.
        key_is_path: Whether the key is but the path of the image, which several records of a table may share.
    """

    key: str
    image: bytes
    caption: str
    label: int | None
    metadata: dict[str, Any]
    shard: str
    row: int
    offset: int | None = None
    caption_is_utf8: bool = True
    key_is_path: bool = False


def to_record(
    fields: dict[str, Any],
    source: SourceConfig,
    *,
    shard: str,
    row: int,
    offset: int | None = None,
    draw: int = 0,
    images: bool = True,
) -> Record:
    """Makes a record of stored fields.

    Args:
        fields: By name; ``__image__`` and ``__key__`` are the image and the key where the format says which they are,
            ``__path__`` is what stands for a key where there is none. They are the record's afterwards.
        source: Says which field is what.
        shard: Where they came from.
        row: Likewise.
        offset: Likewise.
        draw: 64 bits that choose among captions.
        images: Whether it needs an image; otherwise one that it has is left out.

    Raises:
        RecordError: It has no image, or lacks the label that the source names.
    """
    path, stored = fields.pop("__path__", None), fields.pop("__key__", None) or fields.get("key")
    key, _ = _text(stored or path)
    try:
        image = _take_image(fields, source.image_key, is_needed=images)
        caption, is_utf8 = _caption(fields, source.caption_key, draw)
        label = _label(fields, source.label_key)
    except RecordError as error:
        error.key = key
        raise
    return Record(
        key=key,
        image=image,
        caption=caption,
        label=label,
        metadata=fields,
        shard=shard,
        row=row,
        offset=offset,
        caption_is_utf8=is_utf8,
        key_is_path=not stored and path is not None,
    )


def parse_json(data: bytes, name: str, *, key: str) -> dict[str, Any]:
    """Parses what a format holds of a record's metadata as JSON.

    Args:
        data: One JSON object.
        name: Of its place, for errors.
        key: The record's.

    Raises:
        RecordError: It is none, or is nested too deeply.
    """
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_record", f"{name} cannot be read ({error})", key=key) from error
    if not isinstance(metadata, dict):
        raise RecordError("bad_record", f"{name} is no object but {metadata!r:.100}", key=key)
    if data.count(b"[") + data.count(b"{") > _MAX_DEPTH and _depth(metadata) > _MAX_DEPTH:
        raise RecordError("bad_record", f"{name} is nested more than {_MAX_DEPTH} deep", key=key)
    return metadata


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _take_image(fields: dict[str, Any], name: str, *, is_needed: bool) -> bytes:
    key = "__image__" if "__image__" in fields else _find(fields, name, IMAGE_KEYS)
    if key != "__image__" and name == "auto" and (key is None or not _image_bytes(fields[key])):
        key = next((other for other, value in fields.items() if is_picture(_image_bytes(value) or b"")), key)
    image = _image_bytes(fields.pop(key)) if key else b""
    if not is_needed:
        return b""
    if key and image is None:
        raise RecordError("null_image", f"{key} is null")
    if not image:
        names = " or ".join(IMAGE_KEYS if name == "auto" else (name,))
        raise RecordError("missing_image", f"no bytes in {names}; the fields are {', '.join(fields)}")
    return image


def _image_bytes(value: Any) -> bytes | None:
    """Returns an image field's bytes, ``b""`` where it holds something else, None where it is null."""
    if isinstance(value, dict) and "bytes" in value:  # as Hugging Face data sets store images in Parquet
        value = value["bytes"]
    return value if value is None or isinstance(value, bytes) else b""


def _caption(fields: dict[str, Any], keys: str | tuple[str, ...] | Mapping[str, float], draw: int) -> tuple[str, bool]:
    """Returns the caption, drawn where there are several that are not blank, and whether it was UTF-8."""
    if isinstance(keys, str):
        key = _find(fields, keys, CAPTION_KEYS)
    else:
        weights = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, 1.0)
        filled = {name: weight for name, weight in weights.items() if not _is_nothing(fields.get(name))}
        key = _draw(filled, draw) if filled else None
    value = fields.get(key or "")
    if isinstance(value, list | tuple):
        choices = [item for item in value if not _is_nothing(item)]
        value = choices[(draw >> 32) % len(choices)] if choices else None
    return _text(value)


def _draw(weights: Mapping[str, float], draw: int) -> str:
    left = (draw & 0xFFFFFFFF) / 2**32 * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return next(reversed(weights))  # pyright: ignore[reportCallIssue, reportArgumentType]


def _find(fields: Mapping[str, Any], name: str, usual: tuple[str, ...]) -> str | None:
    """Returns the first of the names that holds something, else the first that is there at all."""
    present = [key for key in (usual if name == "auto" else (name,)) if key in fields]
    return next((key for key in present if not _is_nothing(fields[key])), present[0] if present else None)


def _is_nothing(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_nothing, value))
    return value in _NOTHING or (isinstance(value, str | bytes) and not value.strip())


def _text(value: Any) -> tuple[str, bool]:
    """Returns a field as text, and whether it was UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8"), True
        except UnicodeDecodeError:
            return value.decode("utf-8", "replace"), False
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if text.isascii():
        return text, True
    # JSON can spell half of a surrogate pair, which UTF-8 has no bytes for and no tokenizer takes.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole, whole == text


def _label(fields: Mapping[str, Any], name: str | None) -> int | None:
    """Returns the label; a usual field that holds something else, a class's name say, is none unless it is named."""
    key = _find(fields, name or "auto", LABEL_KEYS)
    if key is None or _is_nothing(fields[key]):
        if name is not None:
            raise RecordError("missing_label", f"nothing in {name!r}; the fields are {', '.join(fields)}")
        return None
    value = fields[key]
    try:
        label = operator.index(value) if not isinstance(value, str | bytes) else int(value)
        if -(1 << 31) <= label < 1 << 31:
            return label
        problem = f"{key} must fit into 32 bits, not be {label}"
    except (TypeError, ValueError):
        problem = f"{key} must be an integer, not {value!r:.100}"
    if name is not None:
        raise RecordError("bad_record", problem)
    return None
