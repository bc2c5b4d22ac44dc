"""Image bytes to uint8 pixels: sniffed, strictly decoded, RGB over white, upright, resized.

Normalisation, crops and flips are the trainer's, on the device.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from clip_data.faults import RecordError

__all__ = ["Interpolation", "ResizeMode", "decode_image"]

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["squash", "shortest", "longest"]

MAX_PIXELS = 64 * 1024 * 1024

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The plugins' own classes, not Image.open: it warns about large images before ours can be refused.
_DECODERS = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
}


def decode_image(
    data: bytes,
    *,
    size: int | None = None,
    resize_mode: ResizeMode = "squash",
    interpolation: Interpolation = "bicubic",
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes JPEG, PNG, WebP or GIF bytes, and resizes to a square.

    The type is read off the bytes. Transparency is laid over white, EXIF rotation is applied, and of an animation the
    first frame is taken. The resize is Pillow's, antialiased.

    Args:
        data: The bytes of an image file.
        size: Side of the result, in pixels; None keeps the image's own height and width.
        resize_mode: ``"squash"`` ignores the aspect ratio, ``"shortest"`` scales the shorter side to ``size`` and crops
            the centre, ``"longest"`` scales the longer side and pads with black around.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        max_pixels: Larger images are refused from their header.

    Returns:
        uint8 [h, w, 3], with h = w = size where a size is given.

    Raises:
        RecordError: ``bad_image`` where the bytes are no whole image, ``image_too_large`` above ``max_pixels``.

    >>> decode_image(b"<html>")
    Traceback (most recent call last):
    clip_data.faults.RecordError: bad_image: neither JPEG, PNG, WebP nor GIF: b'<html>'
    """
    decoder = next((decoder for magic, decoder in _DECODERS.items() if data.startswith(magic)), None)
    if decoder is None or (data[:4] == b"RIFF" and data[8:12] != b"WEBP"):
        raise RecordError("bad_image", f"neither JPEG, PNG, WebP nor GIF: {data[:16]!r}")
    if data[:4] == b"RIFF":
        _refuse_large(_webp_size(data), max_pixels)  # Pillow's WebP decoder allocates when it opens
    try:
        with decoder(io.BytesIO(data)) as image:
            _refuse_large(image.size, max_pixels)
            image = _to_rgb(_upright(image))
            if size is not None:
                image = _resize(image, size, resize_mode, _RESAMPLING[interpolation])
            return np.asarray(image)
    except (RecordError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged bytes
        raise RecordError("bad_image", f"{type(error).__name__}: {error}") from error


def _refuse_large(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise RecordError("image_too_large", f"{size[0]}x{size[1]} pixels are more than {max_pixels}")


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


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image.info.get("exif", b"")))
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes) -> int:
    """Reads the one tag that matters; Pillow's reader gives up on blocks that are damaged elsewhere."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (num_tags,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * num_tags, 12):
            tag, value = struct.unpack_from(order + "H6xH", exif, entry)
            if tag == _ORIENTATION_TAG:
                return value
    except struct.error:  # the block ends before its own directory does: no orientation is known
        return 1
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _resize(image: Image.Image, size: int, mode: ResizeMode, resampling: Image.Resampling) -> Image.Image:
    """Makes an image square, with the rounding of transformers' image processors."""
    width, height = image.size
    if mode == "squash" or width == height:
        return image if image.size == (size, size) else image.resize((size, size), resampling)
    if mode == "shortest":
        short = min(width, height)
        width, height = int(size * width / short), int(size * height / short)
        left, top = (width - size) // 2, (height - size) // 2
        return image.resize((width, height), resampling).crop((left, top, left + size, top + size))
    long = max(width, height)
    width, height = max(1, round(size * width / long)), max(1, round(size * height / long))
    square = Image.new("RGB", (size, size))
    square.paste(image.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
    return square
