import jax.numpy as jnp
import numpy as np
import pytest

from clip_train.optimizers.graft import graft_update

GRADS = np.random.default_rng(0).normal(size=(4, 3, 6, 5)) * np.array([1, 10, 0.1])[:, None, None]


@pytest.mark.parametrize("beta2", [0.95, 1.0])
@pytest.mark.parametrize("graft", ["adagrad", "adagrad_normalized", "rmsprop", "rmsprop_normalized"])
def test_sizes_are_those_of_the_optimizer_layer_by_layer(graft, beta2):
    ours, theirs = jnp.zeros((3, 6, 5)), np.zeros((3, 6, 5))
    for grad in GRADS:
        update, ours = graft_update(
            graft, jnp.asarray(grad, jnp.float32), ours, beta2=beta2, epsilon=1e-10, stacked=True
        )
        if graft.endswith("_normalized"):
            grad = grad / np.linalg.norm(grad.reshape(3, -1), axis=1)[:, None, None]
        sums_up = graft.startswith("adagrad") or beta2 == 1
        theirs = theirs + grad**2 if sums_up else beta2 * theirs + (1 - beta2) * grad**2
        np.testing.assert_allclose(update, grad / (np.sqrt(theirs) + 1e-10), rtol=1e-5)
