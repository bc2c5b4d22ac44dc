import io
import struct
import zlib

import cv2
import numpy as np
import PIL
import pytest
from cykooz_resizer import ImageData
from PIL import Image, ImageFile, ImageOps

from clip_data import DataConfig, Pipeline, SourceConfig, decode_image
from clip_data import resize as resize_module
from clip_data.faults import RecordError
from clip_data.image import decode_patches
from clip_data.resize import fit_frame, resize
from clip_data.tfrecord import write_examples

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), np.uint8)


def within_one_level(actual, expected):
    assert np.abs(actual.astype(int) - np.asarray(expected)).max() <= 1


def photograph(height, width):
    """Something smooth with edges and a little grain, like a photograph's luminance and colour."""
    coarse = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse).astype(int) + RNG.integers(-3, 4, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 3
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_lossless_formats_come_back_exactly(encode, form, options):
    pixels = PIXELS[:, :, :1].repeat(3, 2)  # grey: GIF's palette holds all of it
    np.testing.assert_array_equal(decode_image(encode(pixels, form=form, **options)), pixels)


@pytest.mark.parametrize("options", [{"form": "JPEG"}, {"form": "JPEG", "progressive": True}, {"form": "WEBP"}])
def test_lossy_formats_match_pillow(encode, options):
    data = encode(photograph(75, 101), quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data), expected)
    np.testing.assert_array_equal(decode_image(data, size=64), resize(expected, 64, 64))
    within_one_level(decode_image(data, size=64), Image.fromarray(expected).resize((64, 64), Image.Resampling.BICUBIC))


def test_a_jpeg_of_the_right_size_is_decoded_in_place(encode):
    data = encode(photograph(32, 32), form="JPEG")
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    decode_image(data, size=32, out=batch[1])
    np.testing.assert_array_equal(batch[1], decode_image(data))
    assert not batch[0].any()


def test_scaled_decoding_stays_close(encode):
    data = encode(photograph(768, 1024), form="JPEG", quality=90)
    whole, scaled = (decode_image(data, size=192, scaled=scaled).astype(float) for scaled in (False, True))
    assert 10 * np.log10(255**2 / np.mean((whole - scaled) ** 2)) > 45
    assert (whole != scaled).any()
    for size in (385, 600):  # less than twice the size: nothing is saved at the picture's expense
        np.testing.assert_array_equal(decode_image(data, size=size, scaled=True), decode_image(data, size=size))


def test_damaged_jpegs_by_choice(encode):
    data = encode(photograph(64, 64), form="JPEG", quality=95)
    rotten = data[:-40] + data[-30:]  # ten bytes are gone, and libjpeg makes the last blocks up
    with pytest.raises(RecordError, match="bad_image"):
        decode_image(rotten)
    assert decode_image(rotten, strict=False).shape == (64, 64, 3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_modes(encode, interpolation):
    data, image = encode(PIXELS), Image.fromarray(PIXELS)
    resampling = Image.Resampling[interpolation.upper()]
    squash = decode_image(data, size=8, interpolation=interpolation)
    within_one_level(squash, image.resize((8, 8), resampling))
    shortest = decode_image(data, size=8, resize_mode="shortest", interpolation=interpolation)
    within_one_level(shortest, np.asarray(image.resize((13, 8), resampling))[:, 2:10])
    out = np.full((10, 10, 3), 9, np.uint8)
    longest = decode_image(data, size=10, resize_mode="longest", interpolation=interpolation, out=out)
    assert longest is out
    within_one_level(longest[2:8], image.resize((10, 6), resampling))
    assert not longest[:2].any()
    assert not longest[8:].any()


@pytest.mark.parametrize("shape", [(164, 118), (96, 40), (60, 120), (40, 7), (7, 40), (30, 31)])
@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_any_aspect_ratio_is_resized_as_by_pillow(encode, shape, mode, resampling):
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)  # where the order of the two directions shows most
    height, width, top, left = fit_frame(*shape, (24, 24), mode)
    sizes = [(width, shape[0]), (width, height)]
    if shape[0] > height and shape[0] - height > 2 * (shape[1] - width):
        sizes[0] = shape[1], height
    expected = Image.fromarray(pixels).resize(sizes[0], resampling).resize(sizes[1], resampling)
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert expected == Image.fromarray(pixels).resize(sizes[1], resampling)
    actual = decode_image(encode(pixels), size=24, resize_mode=mode, interpolation=resampling.name.lower())
    difference = np.abs(actual.astype(int) - np.asarray(expected)[-top:, -left:][:24, :24])
    assert difference.max() <= (1 if mode == "squash" else 2)
    assert (difference > 1).mean() < 1e-3


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (1, 1 << 20)])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_a_thin_picture_takes_no_more_memory_than_it_has(monkeypatch, shape, mode):
    made = []
    monkeypatch.setattr(resize_module, "ImageData", lambda *args: made.append(args[0] * args[1]) or ImageData(*args))
    fit = fit_frame(*shape, (224, 224), mode)
    window = max(-fit.top, 0), max(-fit.left, 0), min(fit.height, 224), min(fit.width, 224)
    pixels = np.broadcast_to(np.uint8([10, 20, 30]), (*shape, 3))
    out = resize(pixels, fit.height, fit.width, window=window)
    assert out.shape == (*window[2:], 3)
    assert (out == [10, 20, 30]).all()
    assert max(made) <= max(shape) + 240 * 224


def over_white(pixels):
    alpha = pixels[..., -1:].astype(float) / 255
    return np.broadcast_to(pixels[..., :-1] * alpha + 255 * (1 - alpha), (*pixels.shape[:2], 3))


def modes():
    """Pictures of every mode as files, and what they look like, worked out apart."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 13, 4), np.uint8)
    noise[:3, :, 3], noise[3:5, :, 3] = 255, 0
    grey, colours = noise[..., :1].repeat(3, 2), rng.integers(0, 256, (256, 3), np.uint8)

    def file(pixels, mode, form="PNG", **options):
        image = Image.fromarray(pixels) if mode is None else Image.frombytes(mode, (13, 9), pixels.tobytes())
        image.save(out := io.BytesIO(), form, **options)
        return out.getvalue()

    yield "grey", file(noise[..., 0], "L"), grey
    yield "grey and alpha", file(noise[..., [0, 3]], "LA"), over_white(noise[..., [0, 3]])
    yield "alpha", file(noise, "RGBA"), over_white(noise)
    yield "alpha in WebP", file(noise, "RGBA", "WEBP", lossless=True), over_white(noise)
    palette = Image.frombytes("P", (13, 9), noise[..., 0].tobytes())
    palette.putpalette(colours.tobytes())
    palette.save(out := io.BytesIO(), "PNG")
    yield "palette", out.getvalue(), colours[noise[..., 0]]
    palette.save(out := io.BytesIO(), "PNG", transparency=int(noise[0, 0, 0]))
    clear = np.where((noise[..., 0] == noise[0, 0, 0])[..., None], 255, colours[noise[..., 0]])
    yield "palette with a clear colour", out.getvalue(), clear
    yield "two colours", file(np.packbits(noise[..., 0] > 99, axis=1), "1"), (noise[..., :1] > 99) * np.full(3, 255)
    deep = rng.integers(0, 1 << 16, (9, 13, 3), np.uint16)
    yield "16 bits of grey", file(deep[..., 0], None), (deep[..., :1] >> 8).repeat(3, 2)
    yield "16 bits", cv2.imencode(".png", deep[..., ::-1])[1].tobytes(), deep >> 8
    smooth = np.full((9, 13, 4), [30, 90, 200, 20], np.uint8)  # JPEG keeps what does not change
    expected = (255.0 - smooth[..., :3]) * (255 - smooth[..., 3:]) / 255
    yield "CMYK", file(smooth, "CMYK", "JPEG", quality=100, subsampling=0), expected


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in modes()])
def test_every_mode_becomes_rgb_over_white(tmp_path, data, expected):
    write_examples(tmp_path / "a.tfrecord", [{"image": data}])
    source = SourceConfig(format="tfrecord", shards=str(tmp_path / "a.tfrecord"))
    config = DataConfig(sources=(source,), image_size=(9, 13), tokenizer=None, text_length=1)
    with Pipeline(config, global_batch_size=1) as pipeline:
        image = next(pipeline).image[0]
    assert np.abs(image - expected).max() <= (2 if data.startswith(b"\xff\xd8") else 1)
    np.testing.assert_array_equal(decode_image(data), image)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation_matches_pillow(encode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PIXELS, exif=exif.tobytes())
    np.testing.assert_array_equal(decode_image(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_exif_rotation_is_applied(encode, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    out = decode_image(encode(pixels, form=form, exif=exif.tobytes()))
    assert out.shape == (32, 16, 3)
    assert (out[:12] > 200).all()
    assert (out[20:] < 50).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # Pillow looks for a resolution in it
def test_broken_exif_is_no_reason_to_lose_the_picture(encode):
    out = decode_image(encode(PIXELS, form="JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 30))
    assert out.shape == PIXELS.shape


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(form):
    out = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(out, form, save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(out.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_cut_images_are_refused(encode, form):
    data = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), form=form)
    for cut in (0, 8, 20, len(data) // 2, len(data) - 40):
        with pytest.raises(RecordError, match="bad_image"):
            decode_image(data[:cut])


def test_what_is_no_image_is_refused():
    for data in (b"", b"<!DOCTYPE html><html>", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0WEBPXXXX" + bytes(20)):
        with pytest.raises(RecordError, match="bad_image"):
            decode_image(data)


def test_bombs_are_refused_from_their_header(encode):
    side = 30_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    webp = bytearray(encode(PIXELS, form="WEBP"))
    webp[26:30] = struct.pack("<HH", 16383, 16383)
    jpeg = bytearray(encode(PIXELS, form="JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    gif = bytearray(encode(PIXELS, form="GIF"))
    frame = 13 + (3 << (gif[10] & 7) + 1) * (gif[10] >> 7)  # its screen stays as small as it was
    gif[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    for data in (png, bytes(webp), bytes(jpeg), bytes(gif)):
        with pytest.raises(RecordError, match="image_too_large"):
            decode_image(data)


def test_a_second_header_of_another_size_is_refused_before_it_is_believed(encode, monkeypatch):
    data, body = encode(PIXELS[:, :, 0]), struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    second = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(RecordError, match=r"bad_image: it says 20x12 pixels in one place and 12000x12000 in another"):
        decode_image(data[:33] + second + data[33:])


@pytest.mark.parametrize("size", [(18, 31), (31, 18), (24, 24)])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_frames_of_any_shape(encode, size, mode):
    data = encode(photograph(50, 64))
    out = np.full((*size, 3), 9, np.uint8)
    assert decode_image(data, size=size, resize_mode=mode, out=out) is out
    np.testing.assert_array_equal(out, decode_image(data, size=size, resize_mode=mode))
    ratio = max(50 / size[0], 64 / size[1])
    if mode == "longest":  # as much black as the picture leaves
        rows, columns = (out.any(2).any(axis).sum() for axis in (1, 0))
        assert (rows, columns) == (max(1, round(50 / ratio)), max(1, round(64 / ratio)))


@pytest.mark.parametrize("shape", [(240, 320), (37, 1000), (64, 64), (3, 5), (511, 385)])
def test_patches_match_transformers(encode, shape):
    processors = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")  # transformers 5
    pixels = photograph(*shape)
    processor = processors.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=50, do_normalize=False)
    expected = processor(images=[Image.fromarray(pixels)], return_tensors="np", do_rescale=False)
    patches, rows, columns = decode_patches(encode(pixels), patch_size=4, max_patches=50)
    assert expected["spatial_shapes"].tolist() == [[rows, columns]]
    assert expected["pixel_attention_mask"].sum() == rows * columns == len(patches)
    within_one_level(patches, expected["pixel_values"][0, : len(patches)])


def test_a_large_jpeg_has_the_same_patches_scaled(encode):
    data = encode(photograph(601, 803), form="JPEG", quality=90)
    whole, *grid = decode_patches(data, patch_size=8, max_patches=64)
    scaled, *scaled_grid = decode_patches(data, patch_size=8, max_patches=64, scaled=True)
    assert scaled_grid == grid
    assert 10 * np.log10(255**2 / np.mean((whole - scaled.astype(float)) ** 2)) > 45
