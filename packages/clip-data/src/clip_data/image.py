"""Image bytes to the uint8 pixels of a batch: decoded and resized.

Normalisation, crops and flips are the trainer's, on the device.
"""

from __future__ import annotations

import numpy as np

from clip_data.decode import MAX_PIXELS, decode_pixels
from clip_data.resize import Interpolation, ResizeMode, fit_square, resize

__all__ = ["Interpolation", "ResizeMode", "decode_image"]

# Decoded at a fraction of its size, a JPEG must keep this multiple of the size wanted: it then stays 45 dB from the
# whole one.
_SCALED_MARGIN = 2


def decode_image(
    data: bytes,
    *,
    size: int | None = None,
    resize_mode: ResizeMode = "squash",
    interpolation: Interpolation = "bicubic",
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
    scaled: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes JPEG, PNG, WebP or GIF bytes, and resizes to a square.

    The type is read off the bytes. Transparency is laid over white, EXIF rotation is applied, and of an animation the
    first frame is taken. The resize is Pillow's, antialiased, to within one level.

    Args:
        data: The bytes of an image file.
        size: Side of the result, in pixels; None keeps the image's own height and width.
        resize_mode: ``"squash"`` ignores the aspect ratio, ``"shortest"`` scales the shorter side to ``size`` and crops
            the centre, ``"longest"`` scales the longer side and pads with black around.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        max_pixels: Larger images are refused from their header.
        strict: False takes what can be had of a JPEG that libjpeg warns about.
        scaled: Whether a JPEG of twice the size or more may be decoded at 1/2, 1/4 or 1/8 first: quicker, and not quite
            the same.
        out: uint8 [size, size, 3], C-contiguous, to write to.

    Returns:
        uint8 [h, w, 3], with h = w = size where a size is given; ``out`` where that is given.

    Raises:
        RecordError: ``bad_image`` where the bytes are no whole image, ``image_too_large`` above ``max_pixels``.

    >>> decode_image(b"<html>")
    Traceback (most recent call last):
    clip_data.faults.RecordError: bad_image: neither JPEG, PNG, WebP nor GIF: b'<html>'
    """
    if size is None:
        return decode_pixels(data, max_pixels=max_pixels, strict=strict)

    def enough(height: int, width: int) -> tuple[int, int]:
        fit = fit_square(height, width, size, resize_mode)
        return _SCALED_MARGIN * fit.height, _SCALED_MARGIN * fit.width

    pixels = decode_pixels(data, max_pixels=max_pixels, strict=strict, enough=enough if scaled else None, out=out)
    if pixels is out:
        return pixels
    fit = fit_square(*pixels.shape[:2], size, resize_mode)
    pixels = resize(pixels, fit.height, fit.width, interpolation)
    top, left = max(-fit.top, 0), max(-fit.left, 0)
    pixels = pixels[top : top + size, left : left + size]
    if out is None and pixels.shape[:2] == (size, size):
        return pixels
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    if pixels.shape[:2] != (size, size):
        out.fill(0)
    top, left = max(fit.top, 0), max(fit.left, 0)
    out[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return out
