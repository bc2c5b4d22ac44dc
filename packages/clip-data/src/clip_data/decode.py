"""Image bytes to RGB pixels at their own size: sniffed, strictly decoded, over white, upright.

JPEG goes to libjpeg-turbo through simplejpeg, plain WebP and PNG to OpenCV, and whatever is rarer (transparency,
palettes, CMYK, 16 bits, animations, a rotation in the EXIF block of a WebP or PNG) to Pillow. All three agree to the
bit where more than one could decode.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from clip_data.faults import RecordError
from clip_data.picture import PictureHeader, picture_header

__all__ = ["MAX_PIXELS", "Decoded", "decode_pixels", "is_plain_jpeg"]

MAX_PIXELS = 64 * 1024 * 1024

_READ = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_ORIENTATION_TAG = 0x0112
_MAX_EXIF = 1 << 16  # bytes of a JPEG's segment
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
# The plugins' own classes, not Image.open: it warns about large images, and has been told of more formats than these.
_PLUGINS = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
}


class Decoded(NamedTuple):
    """An image's pixels.

    Args:
        pixels: uint8 [h, w, 3].
        height: Of the image itself.
        width: Likewise.
        part: 1, 2, 4 or 8: its sides over this, rounded up, are those of ``pixels``.
    """

    pixels: np.ndarray
    height: int
    width: int
    part: int = 1

    @staticmethod
    def whole(pixels: np.ndarray) -> Decoded:
        """Says of pixels that they are all there are."""
        return Decoded(pixels, *pixels.shape[:2])


def decode_pixels(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    out: np.ndarray | None = None,
) -> Decoded:
    """Decodes JPEG, PNG, WebP or GIF bytes.

    Args:
        data: The bytes of an image file.
        max_pixels: Larger images are refused from their header.
        strict: False takes what can be had of a JPEG that libjpeg warns about.
        enough: Given a height and width, those that suffice: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
            that still leaves as much. None decodes every pixel.
        out: uint8 [h, w, 3], C-contiguous, used where the image is of that size.

    Returns:
        The pixels: ``out`` itself where that was used.

    Raises:
        RecordError: ``bad_image`` where the bytes are no whole image, ``image_too_large`` above ``max_pixels``.
    """
    header = picture_header(data)
    if header.width * header.height > max_pixels:
        detail = f"{header.width}x{header.height} pixels are more than {max_pixels}"
        raise RecordError("image_too_large", detail)
    try:
        if header.kind == "jpeg":
            return _jpeg(data, header, strict, enough, out)
        if (header.kind == "png" and _is_plain_png(data)) or (header.kind == "webp" and _is_plain_webp(data)):
            return Decoded.whole(_opencv(data))
        return Decoded.whole(_pillow(data, header))
    except (RecordError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like on damaged bytes
        raise RecordError("bad_image", f"{type(error).__name__}: {error}") from error


def _jpeg(
    data: bytes,
    header: PictureHeader,
    strict: bool,
    enough: Callable[[int, int], tuple[int, int]] | None,
    out: np.ndarray | None,
) -> Decoded:
    height, width, turn = header.height, header.width, _jpeg_turn(data, header)
    try:
        # Decoded at its own size, straight into the batch.
        if turn is None and out is not None and out.shape == (height, width, 3):
            simplejpeg.decode_jpeg(data, buffer=out.reshape(-1))
            return Decoded.whole(out)
        shift = 0 if enough is None or turn is not None else _shift(height, width, *enough(height, width))
        least = (-(-height >> shift), -(-width >> shift)) if shift else (0, 0)
        pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError:
        if strict and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
            raise
        return Decoded.whole(_pillow(data, header))
    if turn is not None:
        return Decoded.whole(np.ascontiguousarray(turn(pixels)))
    return Decoded(pixels, height, width, 1 << shift)


def is_plain_jpeg(data: bytes, height: int, width: int) -> bool:
    """Whether every decoder makes the same pixels of it: a JPEG that is upright, and grey or of three colours.

    Args:
        data: The bytes of an image file.
        height: That it must have.
        width: Likewise.
    """
    try:
        header = picture_header(data)
        if header[:3] != ("jpeg", width, height) or _jpeg_turn(data, header) is not None:
            return False
        return simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK")
    except ValueError:
        return False


def _jpeg_turn(data: bytes, header: PictureHeader) -> Callable[[np.ndarray], np.ndarray] | None:
    return _TURNS.get(_orientation(data[header.exif : header.exif + _MAX_EXIF])) if header.exif else None


def _shift(height: int, width: int, enough_height: int, enough_width: int) -> int:
    """Returns the largest power-of-two reduction that leaves enough; other fractions save no time."""
    return next((n for n in (3, 2, 1) if height >> n >= enough_height and width >> n >= enough_width), 0)


def _is_plain_png(data: bytes) -> bool:
    """Eight bits of RGB, without a transparent colour or a rotation."""
    return data[24:26] == b"\x08\x02" and b"tRNS" not in data and b"eXIf" not in data


def _is_plain_webp(data: bytes) -> bool:
    """Without alpha, animation or a rotation: its first chunk is the picture, or its flags say so."""
    kind = data[12:16]
    if kind == b"VP8L":
        return not data[24] & 0x10
    return kind == b"VP8 " or (kind == b"VP8X" and not data[20] & 0x1A)


def _opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _READ)
    if pixels is None:
        raise RecordError("bad_image", "OpenCV cannot decode it: cut short or damaged")
    return pixels


def _pillow(data: bytes, header: PictureHeader) -> np.ndarray:
    with _PLUGINS[header.kind](io.BytesIO(data)) as image:
        # A second header in the file may say another size than the one that was judged.
        _check_size(image, header)
        image.load()
        _check_size(image, header)
        exif = image.info.get("exif", b"")
        pixels = np.asarray(_to_rgb(image))
    turn = _TURNS.get(_orientation(exif))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _check_size(image: Image.Image, header: PictureHeader) -> None:
    if image.size != (header.width, header.height):
        width, height = image.size
        raise RecordError(
            "bad_image", f"it says {header.width}x{header.height} pixels in one place and {width}x{height} in another"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
