from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clip_models import PreprocessConfig, preprocess_images


def with_preprocess(config, **fields):
    return replace(config, preprocess=PreprocessConfig(mean=(0, 0, 0), std=(1, 1, 1), **fields))


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


def test_refuses_what_is_no_picture(siglip):
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\]; got float64 \[4, 4, 3\]"):
        preprocess_images(siglip, [np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="at least one"):
        preprocess_images(siglip, [])
