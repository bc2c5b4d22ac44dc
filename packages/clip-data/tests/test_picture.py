import io

import pytest
from PIL import Image

from clip_data.faults import RecordError
from clip_data.picture import picture_header


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0" + bytes(6)}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"II*\0\x08\0\0\0" + bytes(6)}),
    ],
)
def test_type_and_size(encode, form, options):
    data = encode(form=form, size=(301, 170), **options)
    assert picture_header(data)[:3] == (form.lower(), 301, 170)
    assert Image.open(io.BytesIO(data)).size == (301, 170)
    for length in range(6, 10):  # none of them holds a size yet
        with pytest.raises(RecordError, match="bad_image"):
            picture_header(data[:length])


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"RIFF\0\0\0\0WAVE", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff" + b"\xff" * 99]
)
def test_no_picture(data):
    with pytest.raises(RecordError, match="bad_image"):
        picture_header(data)
