from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_models import PreprocessConfig, preprocess_images
from clip_models.preprocess import naflex_grid
from clip_models.presets import OPENAI_MEAN, OPENAI_STD

PICTURES = Path(__file__).parent / "fixtures" / "pictures"
FILES = [PICTURES / name for name in ("on_its_side.jpg", "transparent.png", "grey.png", "palette.png")]


def with_preprocess(config, **fields):
    fields = {"mean": (0, 0, 0), "std": (1, 1, 1), **fields}
    vision = replace(config.vision, flexible=fields.get("resize_mode") == "naflex")
    if "size" in fields:
        vision = replace(vision, image_size=fields["size"])
    return replace(config, vision=vision, preprocess=PreprocessConfig(**fields))


def test_modes_show_what_they_say(siglip):
    # left third red, middle green, right third blue
    picture = np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 16, axis=0).repeat(16, axis=1)
    squash, shortest, longest = (
        preprocess_images(with_preprocess(siglip, resize_mode=mode), [picture])[0]
        for mode in ("squash", "shortest", "longest")
    )
    assert squash.shape == shortest.shape == longest.shape == (16, 16, 3)
    np.testing.assert_allclose(squash[8, [0, 8, 15]], np.eye(3), atol=0.02)
    np.testing.assert_allclose(shortest, np.broadcast_to([0, 1, 0], (16, 16, 3)), atol=0.02)
    np.testing.assert_allclose(longest[[0, 15]], 0)
    np.testing.assert_allclose(longest[8, [0, 8, 15]], np.eye(3), atol=0.02)


def test_sizes_need_not_be_square(siglip):
    picture = np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 16, axis=0).repeat(16, axis=1)  # [16, 48, 3]
    squash, shortest, longest = (
        preprocess_images(with_preprocess(siglip, resize_mode=mode, size=(8, 16)), [picture])[0]
        for mode in ("squash", "shortest", "longest")
    )
    assert squash.shape == shortest.shape == longest.shape == (8, 16, 3)
    np.testing.assert_allclose(squash[4, [0, 8, 15]], np.eye(3), atol=0.02)
    # 48 x 16 pixels become 24 x 8, of which 4 go at either end
    np.testing.assert_allclose(shortest[:, [0, 8, 15]], np.broadcast_to(np.eye(3), (8, 3, 3)), atol=0.02)
    np.testing.assert_allclose(shortest[:, 3:5].sum(-1), 1, atol=0.02)
    # ... or 16 x 5, between black lines
    np.testing.assert_allclose(longest[[0, 6, 7]], 0)
    np.testing.assert_allclose(longest[1:6].sum(-1), 1, atol=0.02)


@pytest.mark.parametrize("kind", ["files", "opened"])
@pytest.mark.parametrize(
    "fields",
    [
        {"resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"resize_mode": "shortest", "mean": OPENAI_MEAN, "std": OPENAI_STD},
        {
            "resize_mode": "naflex",
            "interpolation": "bilinear",
            "max_patches": 20,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        },
    ],
    ids=lambda fields: fields["resize_mode"],
)
def test_agrees_with_transformers(siglip, fields, kind):
    golden = np.load(PICTURES / "golden.npz")
    pictures = [Image.open(path) for path in FILES] if kind == "opened" else FILES
    arrays = preprocess_images(with_preprocess(siglip, **fields), pictures)
    if isinstance(arrays, np.ndarray):
        arrays = {"pixel_values": arrays.transpose(0, 3, 1, 2)}
    else:
        assert list(arrays) == ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, golden[f"{fields['resize_mode']}_{kind}_{name}"], atol=1e-5)


def test_naflex_grids_keep_the_aspect_and_fill_the_sequence():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 2000, (50, 2)):
        rows, columns = naflex_grid(int(height), int(width), patch_size=16, max_patches=256)
        assert 1 <= rows * columns <= 256
        if 0.1 < height / width < 10:
            assert rows * columns > 200
            assert abs(rows - columns * height / width) <= 1 + height / width
    assert naflex_grid(1, 100_000, patch_size=16, max_patches=256) == (1, 256)


def test_normalises(siglip):
    white = np.full((5, 5, 3), 255, np.uint8)
    pixels = preprocess_images(siglip, [white, 0 * white])
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:, 0, 0, 0], [1, -1])


def test_arrays_images_and_files_are_alike(siglip, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    a, b, c = preprocess_images(siglip, [picture, Image.fromarray(picture), path])
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)
    clear = np.dstack([picture, np.zeros((20, 30), np.uint8)])
    grey, rgb, white = preprocess_images(siglip, [picture[:, :, :1], picture[:, :, [0, 0, 0]], clear])
    np.testing.assert_array_equal(grey, rgb)
    np.testing.assert_array_equal(white, np.ones((16, 16, 3)))


def test_refuses_what_is_no_picture(siglip):
    with pytest.raises(ValueError, match=r"uint8 \[h, w, channels\] .* got float64 \[4, 4, 3\]"):
        preprocess_images(siglip, [np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="at least one"):
        preprocess_images(siglip, [])
    with pytest.raises(ValueError, match=r"without a vision tower .* is None"):
        preprocess_images(replace(siglip, vision=None, preprocess=PreprocessConfig()), [FILES[0]])
