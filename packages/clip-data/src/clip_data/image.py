"""Image bytes to the uint8 pixels of a batch: decoded and resized.

Normalisation, crops and flips are the trainer's, on the device.
"""

from __future__ import annotations

import numpy as np

from clip_data.decode import MAX_PIXELS, Decoded, decode_pixels
from clip_data.resize import Fit, Interpolation, ResizeMode, fit_frame, fit_patches, resize

__all__ = ["Interpolation", "ResizeMode", "decode_image", "decode_patches"]

# Decoded at a fraction of its size, a JPEG must keep this multiple of the size wanted: it then stays 45 dB from the
# whole one.
_SCALED_MARGIN = 2


def decode_image(
    data: bytes,
    *,
    size: int | tuple[int, int] | None = None,
    resize_mode: ResizeMode = "squash",
    interpolation: Interpolation = "bicubic",
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
    scaled: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes JPEG, PNG, WebP or GIF bytes, and resizes.

    The type is read off the bytes. Transparency is laid over white, EXIF rotation is applied, and of an animation the
    first frame is taken. The resize is Pillow's, antialiased, to within one level, seldom two.

    Args:
        data: The bytes of an image file.
        size: Side of the result, or its height and width, in pixels; None keeps the image's own.
        resize_mode: ``"squash"`` ignores the aspect ratio, ``"shortest"`` scales the shorter side to ``size`` and crops
            the centre, ``"longest"`` scales the longer side and pads with black around.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        max_pixels: Larger images are refused from their header.
        strict: False takes what can be had of a JPEG that libjpeg warns about.
        scaled: Whether a JPEG of twice the size or more may be decoded at 1/2, 1/4 or 1/8 first: quicker, and not quite
            the same.
        out: uint8 [h, w, 3] of that size, C-contiguous, to write to.

    Returns:
        uint8 [h, w, 3]; ``out`` where that is given.

    Raises:
        RecordError: ``bad_image`` where the bytes are no whole image, ``image_too_large`` above ``max_pixels``.

    >>> decode_image(b"<html>")
    Traceback (most recent call last):
    clip_data.faults.RecordError: bad_image: neither JPEG, PNG, WebP nor GIF: b'<html>'
    """
    if size is None:
        return decode_pixels(data, max_pixels=max_pixels, strict=strict).pixels
    frame = (size, size) if isinstance(size, int) else size

    def enough(height: int, width: int) -> tuple[int, int]:
        fit = fit_frame(height, width, frame, resize_mode)
        return _SCALED_MARGIN * fit.height, _SCALED_MARGIN * fit.width

    image = decode_pixels(data, max_pixels=max_pixels, strict=strict, enough=enough if scaled else None, out=out)
    if image.pixels is out:
        return image.pixels
    fit = fit_frame(image.height, image.width, frame, resize_mode)
    window = max(-fit.top, 0), max(-fit.left, 0), min(fit.height, frame[0]), min(fit.width, frame[1])
    pixels = _resize(image, fit, interpolation, window)
    if out is None and pixels.shape[:2] == frame:
        return pixels
    out = np.empty((*frame, 3), np.uint8) if out is None else out
    if pixels.shape[:2] != frame:
        out.fill(0)
    top, left = max(fit.top, 0), max(fit.left, 0)
    out[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return out


def decode_patches(
    data: bytes,
    *,
    patch_size: int,
    max_patches: int,
    interpolation: Interpolation = "bilinear",
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
    scaled: bool = False,
) -> tuple[np.ndarray, int, int]:
    """Decodes an image to a sequence of patches that keeps its aspect ratio, as SigLIP 2's NaFlex takes it.

    Args:
        data: As for ``decode_image``; so are the other arguments not named here.
        patch_size: Side of a patch, in pixels.
        max_patches: The image is scaled to at most as many.
        interpolation: Likewise.
        max_pixels: Likewise.
        strict: Likewise.
        scaled: Likewise.

    Returns:
        uint8 [p, patch_size · patch_size · 3], patches row by row and the pixels of each row by row, and the numbers of
        rows and columns, whose product is p.

    Raises:
        RecordError: As ``decode_image``.
    """

    def enough(height: int, width: int) -> tuple[int, int]:
        fit = fit_patches(height, width, patch_size, max_patches)
        return _SCALED_MARGIN * fit.height, _SCALED_MARGIN * fit.width

    image = decode_pixels(data, max_pixels=max_pixels, strict=strict, enough=enough if scaled else None)
    fit = fit_patches(image.height, image.width, patch_size, max_patches)
    pixels = _resize(image, fit, interpolation)
    rows, columns = fit.height // patch_size, fit.width // patch_size
    patches = pixels.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
    return patches.reshape(rows * columns, -1), rows, columns


def _resize(
    image: Decoded, fit: Fit, interpolation: Interpolation, window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    sides = (image.height / image.part, image.width / image.part)
    return resize(image.pixels, fit.height, fit.width, interpolation, sides=sides, window=window)
