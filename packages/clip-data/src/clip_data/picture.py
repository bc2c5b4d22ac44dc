"""What the first bytes of an image file say: its type and size, before anything is allocated for it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from clip_data.faults import RecordError

__all__ = ["PictureHeader", "is_picture", "picture_header"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers; the others are tables
_JPEG_EXIF = 0xE1
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


class PictureHeader(NamedTuple):
    """Type and size of an image file.

    Args:
        kind: ``"jpeg"``, ``"png"``, ``"webp"`` or ``"gif"``.
        width: In pixels, before any rotation.
        height: Likewise.
        exif: Offset of a JPEG's EXIF block, of which the rotation is part; 0 without.
    """

    kind: str
    width: int
    height: int
    exif: int = 0


def is_picture(data: bytes) -> bool:
    """Whether bytes begin as an image file does that can be read."""
    return _kind(data) is not None


def picture_header(data: bytes) -> PictureHeader:
    """Reads the type and size of an image file.

    Args:
        data: Its bytes.

    Raises:
        RecordError: ``bad_image`` where they are none, or end before the size is known.

    >>> picture_header(b"GIF89a" + bytes([3, 0, 2, 0, 0, 0, 0]) + b"," + bytes([0, 0, 0, 0, 3, 0, 2, 0]))
    PictureHeader(kind='gif', width=3, height=2, exif=0)
    """
    kind = _kind(data)
    if kind is None:
        raise RecordError("bad_image", f"neither JPEG, PNG, WebP nor GIF: {data[:16]!r}")
    try:
        return PictureHeader(kind, *_SIZES[kind](data))
    except (struct.error, IndexError) as error:
        raise RecordError("bad_image", f"a {kind} file that ends inside its header: {data[:20]!r}") from error


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(_PNG):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "gif" if data[:6] in (b"GIF87a", b"GIF89a") else None


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    position, exif = 2, 0
    while True:
        if data[position] != 0xFF:
            raise RecordError("bad_image", f"a jpeg file without a marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF or marker in _JPEG_ALONE:  # a fill byte, or a marker alone
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height, exif
        if marker == _JPEG_EXIF and not exif and data.startswith(b"Exif\0\0", position + 4):
            exif = position + 4
        if marker in (0xD9, 0xDA):
            raise RecordError("bad_image", "a jpeg file without a frame")
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + max(length, 2)


def _png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise RecordError("bad_image", f"a WebP file without a picture: {data[:20]!r}")


def _gif_size(data: bytes) -> tuple[int, int]:
    """The first frame may reach beyond the screen, which is then as large as that."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_colors(flags)
    while data[position] != 0x2C:
        if data[position] != 0x21:
            raise RecordError("bad_image", "a gif file without a frame")
        position += 2
        while length := data[position]:
            position += 1 + length
        position += 1
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def _gif_colors(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


_SIZES = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size, "gif": _gif_size}
