import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_sharding import MeshConfig, make_mesh
from clip_train import accuracy
from clip_train.accuracy import in_batch_accuracy


@pytest.mark.parametrize("num_devices", [1, 4])
def test_it_is_the_dense_matrixs_in_both_directions_and_has_no_gradient(monkeypatch, num_devices):
    monkeypatch.setattr(accuracy, "_TILE", 64)  # several strips, the last of which overlaps
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(44, 8))
    texts[5] = texts[30]  # one caption twice
    images = texts + 0.9 * rng.normal(size=(44, 8))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    similarity = images @ texts.T
    similarity[30, 5], similarity[5, 30] = similarity[30, 30], similarity[5, 5]
    own = np.diag(similarity)
    expected = (own >= similarity.max(axis=1)).mean(), (own >= similarity.max(axis=0)).mean()
    assert 0.2 < expected[0] != expected[1] < 0.9

    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4]) if num_devices > 1 else None

    def loss(images, texts):
        found = in_batch_accuracy(images, texts, mesh=mesh)
        return sum(found.values()), found

    args = jnp.float32(images), jnp.float32(texts)
    grads, found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*args)
    assert (found["image_to_text_accuracy"], found["text_to_image_accuracy"]) == pytest.approx(expected)
    assert not any(np.any(grad) for grad in grads)
