"""Pictures small enough for a page, as data URLs that need no other file."""

from __future__ import annotations

import base64
import io

import numpy as np


def data_url(image: np.ndarray, *, side: int | None = None) -> str:
    """A picture as the source of an `<img>`.

    Args:
        image: uint8 `[h, w, 3]`.
        side: pixels that its longer side is shrunk to, as a JPEG; by default it is kept whole, as a PNG.
    """
    from PIL import Image

    picture, buffer = Image.fromarray(image), io.BytesIO()
    if side is None:
        picture.save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    picture.thumbnail((side, side))
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
