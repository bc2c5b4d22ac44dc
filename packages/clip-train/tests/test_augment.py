import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_train.augment import AugmentConfig, augment
from clip_train.resample import resize


def pictures(num, height, width):
    """Smooth shapes, sharp edges and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(x / 7)[..., None] * np.cos(y / 11)[..., None] * [1, -1, 0.5]
    images = np.stack([waves] * num) + rng.normal(0, 20, (num, height, width, 3))
    images[:, height // 3 : height // 2, width // 4 : width // 2] = [255, 0, 0]
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("shape", "size"), [((96, 120), (64, 64)), ((96, 120), (150, 40)), ((120, 120), (64, 64))])
def test_resize_is_pillows(interpolation, shape, size):
    images = pictures(5, *shape)
    boxes = np.array([[0, 0, *shape], [10, 20, 71, 53], [50, 1, 20, 30], [3, 4, 40, 90], [5, 5, 90, 80]])
    got = np.asarray(jax.jit(functools.partial(resize, size=size, interpolation=interpolation))(images, boxes))
    resampling = Image.Resampling[interpolation.upper()]
    for image, (top, left, height, width), ours in zip(images, boxes, got, strict=True):
        cut = Image.fromarray(image).crop((left, top, left + width, top + height))
        want = np.asarray(cut.resize(size[::-1], resampling), np.float32)
        assert np.abs(ours - want).max() <= 2
        assert np.abs(ours - want).mean() <= 0.05


def test_random_crops_stay_in_the_picture_and_vary():
    images = jnp.asarray(pictures(16, 32, 48))
    config = AugmentConfig(crop_scale=(0.2, 0.8), flip=True)
    got = jax.jit(lambda key: augment(images, key, config, size=(20, 20)))(jax.random.key(0))
    assert got.shape == (16, 20, 20, 3)
    assert jnp.isfinite(got).all()
    assert got.min() >= 0
    assert got.max() <= 255
    assert len({np.asarray(image).tobytes() for image in got}) == 16


def test_without_a_key_the_centre_is_taken_and_nothing_is_random():
    images = pictures(2, 32, 48)
    config = AugmentConfig(crop_scale=(0.2, 0.8), flip=True)
    got = np.asarray(augment(jnp.asarray(images), None, config, size=(16, 16)))
    want = np.asarray(Image.fromarray(images[0, :, 8:40]).resize((16, 16), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(got[0] - want).max() <= 2


def test_what_changes_nothing_changes_nothing():
    images = pictures(2, 16, 16)
    got = augment(jnp.asarray(images), jax.random.key(0), AugmentConfig(), size=(16, 16))
    np.testing.assert_array_equal(got, images)
