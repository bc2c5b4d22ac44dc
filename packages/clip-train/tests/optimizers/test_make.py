import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_sharding import MeshConfig, make_mesh, shardings, strategy
from clip_train.checkpoint import Checkpoints
from clip_train.optimizers import (
    AdafactorConfig,
    AdamWConfig,
    DistributedShampooConfig,
    LionConfig,
    MuonConfig,
    ParametersConfig,
    make_optimizer,
)
from clip_train.optimizers.preconditioner import Blocks
from clip_train.state import abstract_state, averaged_of, create_state
from clip_train.step import make_step

AXES = {
    "vision": {
        "blocks": {"kernel": ("layers", "embed", "heads"), "bias": ("layers", "heads")},
        "patch_embedding": {"kernel": ("patch", "embed")},
        "norm": {"scale": ("norm",)},
    },
    "text": {"projection": {"kernel": ("embed", "projection")}},
    "logit_scale": (),
}
SHAPES = {"layers": 2, "embed": 64, "heads": 64, "patch": 16, "norm": 64, "projection": 8}
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KINDS = {
    "adamw": (AdamWConfig(weight_decay=0.0), 3e-3),
    "lion": (LionConfig(weight_decay=0.0), 3e-4),
    "adafactor": (AdafactorConfig(weight_decay=0.0, clip_threshold=1.0), 3e-3),
    "muon": (MuonConfig(weight_decay=0.0), 3e-3),
    "shampoo": (
        DistributedShampooConfig(
            weight_decay=0.0,
            block_size=32,
            start_preconditioning_step=4,
            preconditioning_compute_steps=4,
            root_method="eigh",
        ),
        3e-3,
    ),
}


def init():
    leaves, structure = jax.tree.flatten(AXES, is_leaf=lambda node: isinstance(node, tuple))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=[SHAPES[axis] for axis in axes]) / 8 for axes in leaves]
    return structure.unflatten([np.asarray(array, np.float32) for array in arrays])


def loss_fn(params, batch, key):
    vision = params["vision"]
    x = batch["x"] @ vision["patch_embedding"]["kernel"]
    for layer in range(2):
        x = x + jnp.tanh(x @ vision["blocks"]["kernel"][layer] + vision["blocks"]["bias"][layer])
    made = (x * (1 + vision["norm"]["scale"])) @ params["text"]["projection"]["kernel"] * jnp.exp(params["logit_scale"])
    return jnp.mean((made - batch["y"]) ** 2), {}


def batch_of(step):
    x = np.random.default_rng(step).normal(size=(32, 16)).astype(np.float32)
    return {"x": x, "y": x[:, :8] - 0.5 * x[:, 8:]}


def updates_of(config, grads=None):
    """The updates that an optimizer makes of gradients of zero, or of some."""
    tx = make_optimizer(config, 1.0, axes=AXES)

    @functools.partial(jax.jit, compiler_options=FAST_TO_COMPILE)
    def update(params, grads):
        return tx.update(grads, tx.init(params), params)[0]

    params = init()
    return update(params, jax.tree.map(np.zeros_like, params) if grads is None else grads), params


def divided(kind, **sizes):
    """The optimizer, the shapes of its state and its compiled step, on so many devices."""
    config, rate = KINDS[kind]
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])
    tx = make_optimizer(config, rate, axes=AXES, mesh=mesh)
    placed = shardings(strategy("fsdp"), mesh, AXES, jax.eval_shape(init))
    abstract = abstract_state(init, tx, placed, mesh, block_axes=getattr(config, "shard_over", ()))
    step = make_step(loss_fn, tx, abstract=abstract)
    return tx, abstract, step.lower(abstract, batch_of(0)).compile(compiler_options=FAST_TO_COMPILE)


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_divided_over_devices_and_continues_exactly_where_it_was_saved(kind, tmp_path):
    tx, abstract, step = divided(kind, data=2, fsdp=2)
    state = create_state(lambda: jax.tree.map(jnp.asarray, init()), tx, abstract)
    kernel = state.params["vision"]["blocks"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    assert any(
        array.shape == kernel.shape and array.sharding.is_equivalent_to(kernel.sharding, 3)
        for array in jax.tree.leaves(state.opt_state)
    )
    if kind == "shampoo":
        assert all(array.addressable_shards[0].data.size * 4 == array.size for array in blocks_of(state.opt_state))
    losses = []
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(60):
            if i == 50:
                checkpoints.save(i, state, {})
                checkpoints.wait()
            state, metrics = step(state, batch_of(i))
            losses.append(float(metrics["loss"]))
        again = checkpoints.restore(abstract).state
    assert np.mean(losses[-5:]) < 0.25 * losses[0]
    for i in range(50, 60):
        again, _ = step(again, batch_of(i))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # And, but for rounding, on another number of devices, from which it comes back.
    for first, sizes in ((50, {"data": 2, "fsdp": 4}), (52, {"data": 1, "fsdp": 1}), (54, {"data": 2, "fsdp": 2})):
        _, abstract, step = divided(kind, **sizes)
        with Checkpoints(tmp_path) as checkpoints:
            again = checkpoints.restore(abstract).state
            for i in range(first, first + 2):
                again, metrics = step(again, batch_of(i))
                assert float(metrics["loss"]) == pytest.approx(losses[i], rel=1e-5)
            checkpoints.save(first + 2, again, {})
            checkpoints.wait()


def blocks_of(opt_state):
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Blocks))
    return jax.tree.leaves([node for node in nodes if isinstance(node, Blocks)])


def test_by_default_matrices_decay():
    updates, params = updates_of(AdamWConfig(weight_decay=0.5))
    for update, value, axes in zip(
        jax.tree.leaves(updates),
        jax.tree.leaves(params),
        jax.tree.leaves(AXES, is_leaf=lambda node: isinstance(node, tuple)),
        strict=True,
    ):
        matrix = sum(axis != "layers" for axis in axes) >= 2
        np.testing.assert_allclose(update, -0.5 * value * matrix)


def test_patterns_change_decay_and_rate_and_the_last_one_that_says_it_counts():
    parameters = (
        ParametersConfig(match="vision", weight_decay=0.25, learning_rate_scale=0.1),
        ParametersConfig(match="*/bias", decays=True),
        ParametersConfig(match="vision/patch_embedding", weight_decay=0.0),
        ParametersConfig(match="text", decays=False),
    )
    updates, params = updates_of(AdamWConfig(weight_decay=0.5, parameters=parameters))
    expected = {"blocks/kernel": 0.025, "blocks/bias": 0.025, "patch_embedding/kernel": 0.0, "norm/scale": 0.0}
    for name, factor in expected.items():
        part, leaf = name.split("/")
        np.testing.assert_allclose(updates["vision"][part][leaf], -factor * params["vision"][part][leaf], rtol=1e-6)
    np.testing.assert_array_equal(updates["text"]["projection"]["kernel"], 0)


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    config = AdamWConfig(parameters=(ParametersConfig(match="vison/blocks", frozen=True),))
    with pytest.raises(ValueError, match=r"no parameter is matched by 'vison/blocks'.* vision/blocks"):
        make_optimizer(config, 1.0, axes=AXES)


def test_deeper_layers_learn_faster():
    parameters = (ParametersConfig(match="text", layer_decay=1.0),)
    config = LionConfig(weight_decay=0.0, clip_norm=None, layer_decay=0.5, parameters=parameters)
    updates, _ = updates_of(config, jax.tree.map(np.ones_like, init()))
    kernel = updates["vision"]["blocks"]["kernel"]
    np.testing.assert_allclose(kernel[:, 0, 0], [-0.25, -0.5])
    np.testing.assert_allclose(updates["vision"]["patch_embedding"]["kernel"], -0.125)
    for after in (updates["vision"]["norm"]["scale"], updates["text"]["projection"]["kernel"]):
        np.testing.assert_allclose(after, -1)


def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw():
    grads = jax.tree.map(lambda p: np.float32(np.random.default_rng(1).normal(size=p.shape)), init())
    config = MuonConfig(weight_decay=0.0, clip_norm=None)
    updates, _ = updates_of(config, grads)
    adamw, _ = updates_of(AdamWConfig(weight_decay=0.0, clip_norm=None), grads)
    for layer in updates["vision"]["blocks"].pop("kernel"):
        values = np.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(64))
        assert values.min() > 0.3
        assert values.max() < 1.3
    adamw["vision"]["blocks"].pop("kernel")
    jax.tree.map(np.testing.assert_array_equal, updates, adamw)


def test_muons_matrices_may_have_a_rate_of_their_own():
    grads = jax.tree.map(lambda p: np.float32(np.random.default_rng(1).normal(size=p.shape)), init())
    same, _ = updates_of(MuonConfig(), grads)
    tenfold, _ = updates_of(MuonConfig(matrix_learning_rate_scale=10.0), grads)
    kernels = [updates["vision"]["blocks"].pop("kernel") for updates in (same, tenfold)]
    np.testing.assert_allclose(kernels[1], 10 * kernels[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, tenfold)


def test_the_scale_is_clamped_only_where_asked():
    grads = jax.tree.map(lambda p: -np.ones_like(p), init())
    for limit, expected in ((None, 1.0), (1.1, np.log(1.1) - init()["logit_scale"])):
        config = LionConfig(weight_decay=0.0, max_logit_scale=limit)
        updates, _ = updates_of(config, grads)
        np.testing.assert_allclose(updates["logit_scale"], expected, rtol=1e-6)
        np.testing.assert_allclose(updates["text"]["projection"]["kernel"], 1.0)


def test_what_is_frozen_has_no_state_no_gradient_and_no_average(tmp_path):
    frozen = AdamWConfig(parameters=(ParametersConfig(match="vision", frozen=True),))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(frozen, 0.1, axes=AXES)
    trainable = jax.tree.map(lambda _: True, init()) | {"vision": jax.tree.map(lambda _: False, init()["vision"])}
    placed = shardings(strategy("replicated"), mesh, AXES, jax.eval_shape(init))
    abstract = abstract_state(init, tx, placed, mesh, averaged=trainable)
    trained = sum(leaf.size for leaf in jax.tree.leaves({**init(), "vision": {}}))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract.opt_state)) == 2 * trained + 1
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract.ema)) == trained
    state = create_state(lambda: jax.tree.map(jnp.asarray, init()), tx, abstract)

    @jax.custom_jvp
    def constant(x):
        return x

    @constant.defjvp
    def differentiated(primals, tangents):
        raise AssertionError("a frozen parameter is differentiated")

    def guarded_loss(params, batch, key):
        return loss_fn({**params, "vision": jax.tree.map(constant, params["vision"])}, batch, key)

    with pytest.raises(AssertionError, match="is differentiated"):
        make_step(guarded_loss, tx)(state, batch_of(0))
    step = make_step(guarded_loss, tx, trainable=trainable, ema_decay=0.9)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = step(state, batch_of(0))
    jax.tree.map(np.testing.assert_array_equal, before["vision"], state.params["vision"])
    # The first average: 0.1 of the old, 0.9 of the new.
    old, new = before["text"]["projection"]["kernel"], state.params["text"]["projection"]["kernel"]
    assert np.abs(old - new).max() > 0.05
    np.testing.assert_allclose(state.averaged()["text"]["projection"]["kernel"], 0.1 * old + 0.9 * new, rtol=1e-5)
    np.testing.assert_array_equal(state.averaged()["vision"]["norm"]["scale"], before["vision"]["norm"]["scale"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        again = checkpoints.restore(abstract).state
        _, averaged = checkpoints.restore_params(abstract.params, averaged=averaged_of(abstract))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    jax.tree.map(np.testing.assert_array_equal, averaged, state.averaged())
