"""Against `fixtures/shampoo.npz`: 12 steps of gradients, and the updates that the published implementation made.

They were recorded from google-research's `precondition` (`distributed_shampoo`, jax 0.10.2, CPU, float32) with
parameters of zero and a learning rate of 1.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clip_sharding import MeshConfig, make_mesh
from clip_train.optimizers.shampoo import distributed_shampoo

PUBLISHED = {
    "rmsprop_normalized_nesterov": {
        "block_size": 8,
        "beta2": 0.99,
        "graft": "rmsprop_normalized",
        "preconditioning_compute_steps": 1,
        "start_preconditioning_step": 5,
    },
    "adagrad_plain": {
        "block_size": 128,
        "beta2": 1.0,
        "nesterov": False,
        "graft": "adagrad",
        "preconditioning_compute_steps": 1,
        "start_preconditioning_step": 3,
        "moving_average_for_momentum": False,
    },
    "sgd_every4": {
        "block_size": 10,
        "beta1": 0.0,
        "beta2": 0.95,
        "nesterov": False,
        "graft": "sgd",
        "preconditioning_compute_steps": 4,
        "start_preconditioning_step": 2,
        "moving_average_for_momentum": False,
    },
    "sqrt_n_blocks": {
        "block_size": 4,
        "beta2": 0.99,
        "graft": "sqrt_n",
        "preconditioning_compute_steps": 2,
        "start_preconditioning_step": 4,
    },
}
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
NAMES = ("kernel", "wide", "bias")


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "fixtures" / "shampoo.npz") as arrays:
        return dict(arrays)


def steps(tx, grads, params=None):
    """The updates that an optimizer makes of some steps of gradients, and its last state."""
    state = jax.jit(tx.init)(jax.tree.map(lambda g: np.zeros(g.shape[1:], np.float32), grads))
    update, updates = jax.jit(tx.update, compiler_options=FAST_TO_COMPILE), []
    for step in range(len(jax.tree.leaves(grads)[0])):
        made, state = update(jax.tree.map(lambda g, step=step: g[step], grads), state, params)
        updates.append(jax.tree.map(np.asarray, made))
    return jax.tree.map(lambda *made: np.stack(made), *updates), state


def cosines_and_norms(ours, theirs):
    ours, theirs = (np.float64(x).reshape(len(x), -1) for x in (ours, theirs))
    norms = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    return np.sum(ours * theirs, axis=1) / norms[0] / norms[1], norms[0] / norms[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_updates_follow_the_published_implementation(name, recorded):
    grads = {leaf: recorded[f"grad/{leaf}"] for leaf in NAMES}
    updates, _ = steps(distributed_shampoo(1.0, **PUBLISHED[name]), grads)
    for leaf in NAMES:
        cosines, norms = cosines_and_norms(updates[leaf], recorded[f"{name}/update/{leaf}"])
        assert cosines.min() > 0.9999
        np.testing.assert_allclose(norms, 1, atol=0.001)


@pytest.mark.parametrize("shard_over", [("data",), ("model",), ("data", "model")])
def test_layers_that_are_stacked_move_as_if_they_were_apart_and_devices_change_nothing(shard_over):
    layers = (
        np.random.default_rng(0).normal(size=(4, 3, 6, 5)).astype(np.float32) * np.array([1, 10, 0.1])[:, None, None]
    )
    mesh = make_mesh(MeshConfig(data=2, model=2), jax.devices()[:4])
    options = {
        "block_size": 4,
        "graft": "adagrad_normalized",
        "start_preconditioning_step": 1,
        "preconditioning_compute_steps": 2,
        "root_method": "eigh",
    }
    stacked, state = steps(
        distributed_shampoo(
            1.0, **options, is_stacked=lambda name: name == "blocks/kernel", mesh=mesh, shard_over=shard_over
        ),
        {"blocks": {"kernel": layers}},
    )
    apart, _ = steps(distributed_shampoo(1.0, **options), {str(i): layers[:, i] for i in range(3)})
    for i in range(3):
        np.testing.assert_allclose(stacked["blocks"]["kernel"][:, i], apart[str(i)], atol=1e-5)
    spread = NamedSharding(mesh, PartitionSpec(shard_over))
    for array in jax.tree.leaves(state[0].blocks):
        assert array.sharding.is_equivalent_to(spread, array.ndim)


def test_what_is_too_long_or_has_too_few_dims_follows_the_graft(recorded):
    grads = {leaf: recorded[f"grad/{leaf}"] for leaf in NAMES}
    options = {"graft": "sgd", "nesterov": False, "beta1": 0.0, "start_preconditioning_step": 0, "block_size": 8}
    options["root_method"] = "eigh"
    tx = distributed_shampoo(1.0, **options, skip_preconditioning_dim_above=12, skip_preconditioning_rank_below=2)
    updates, _ = steps(tx, grads)
    for leaf in ("wide", "bias"):
        np.testing.assert_allclose(updates[leaf], -grads[leaf])
    cosines, norms = cosines_and_norms(updates["kernel"], -grads["kernel"])
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    assert cosines.max() < 0.99


@pytest.mark.parametrize("decoupled", [True, False])
def test_decay_passes_momentum_or_goes_through_it(decoupled):
    params, grads = {"w": jnp.full((2, 2), 2.0)}, {"w": np.zeros((1, 2, 2), np.float32)}
    tx = distributed_shampoo(
        0.5, nesterov=False, root_method="eigh", weight_decay=0.1, decoupled_weight_decay=decoupled
    )
    updates, _ = steps(tx, grads, params)
    np.testing.assert_allclose(updates["w"][0], -0.5 * 0.1 * 2.0 * (1.0 if decoupled else 1 - 0.9), rtol=1e-6)


def test_a_root_that_fails_leaves_the_last_good_one(recorded):
    grads = {"kernel": recorded["grad/kernel"][:4].copy()}
    tx = distributed_shampoo(1.0, block_size=8, preconditioning_compute_steps=2, root_method="eigh")
    _, good = steps(tx, {"kernel": grads["kernel"][:2]})
    grads["kernel"][2, 0, 0] = np.inf
    _, after = steps(tx, grads)
    for before, now in zip(good[0].blocks["8x8"].roots, after[0].blocks["8x8"].roots, strict=True):
        np.testing.assert_array_equal(before, now)
    assert not np.array_equal(good[0].blocks["4x2"].roots[0], after[0].blocks["4x2"].roots[0])


def test_every_tower_needs_its_block_size():
    tx = distributed_shampoo(1.0, block_size={"text": 8})
    with pytest.raises(ValueError, match=r"got {'text': 8}, and none for 'vision'"):
        tx.init({"text": {"w": jnp.zeros((2, 2))}, "vision": {"w": jnp.zeros((2, 2))}})
