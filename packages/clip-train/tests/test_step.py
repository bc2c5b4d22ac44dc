import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

import clip_train.state
from clip_models import ClipConfig, TextConfig, VisionConfig, init, logical_axes, preset
from clip_sharding import MeshConfig, PartitionConfig, bytes_per_device, make_mesh, shardings, strategy, to_global
from clip_train.objective import LossConfig, clip_objective
from clip_train.optimizers import AdamWConfig, ScheduleConfig, make_optimizer, make_schedule
from clip_train.state import abstract_state, create_state, state_from_params
from clip_train.step import make_step

MODEL = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=2, num_heads=2),
    text=TextConfig(vocab_size=24, max_length=6, width=32, num_layers=2, num_heads=2),
)
CLIP = ClipConfig(
    vision=MODEL.vision, text=MODEL.text, projection_dim=16, logit_bias_init=None, logit_scale_init=2.6592
)
MODELS = {"sigmoid": MODEL, "softmax": CLIP}


def batches(num, size=16):
    rng = np.random.default_rng(0)
    for _ in range(num):
        yield {
            "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
            "input_ids": rng.integers(0, 24, (size, 6), dtype=np.int32),
        }


def compiled(function, *args):
    """A function's program. What is compared needs no fast code, and optimising it is most of the time."""
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return function.lower(*args).compile(compiler_options=fast)


@functools.cache
def first_params(model):
    make, key = jax.jit(functools.partial(init, model)), jax.random.key(0)
    return jax.tree.map(np.asarray, compiled(make, key)(key))


def start(model, mesh, name, tx):
    """The state to start from, placed by a strategy."""
    params = first_params(model)
    abstract = abstract_state(
        lambda: jax.tree.map(jnp.asarray, params),
        tx,
        shardings(strategy(name), mesh, logical_axes(model), params),
        mesh,
    )
    return state_from_params(params, tx, abstract)


@functools.cache
def train(kind, name="replicated", num_steps=20, num_devices=8, **sizes):
    """The losses of a few steps, the state after them and the text of the compiled step."""
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:num_devices])
    model = MODELS[kind]
    schedule = make_schedule(ScheduleConfig(), peak=1e-3, warmup_steps=1, num_steps=num_steps)
    tx = make_optimizer(AdamWConfig(), schedule, axes=logical_axes(model))
    state = start(model, mesh, name, tx)
    objective = clip_objective(model, LossConfig(kind=kind), mesh, rules=strategy(name))
    step = make_step(objective, tx, learning_rate=schedule, abstract=state)
    program = compiled(step, state, to_global(next(batches(1)), mesh))
    losses = []
    for batch in batches(num_steps):
        state, metrics = program(state, to_global(batch, mesh))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, program.as_text()


def gradient(kind, mesh, num_microbatches):
    """The gradient on one batch: what a step of plain SGD subtracts. (Adam would hide its scale.)"""
    model, tx = MODELS[kind], optax.sgd(1.0)
    step = make_step(clip_objective(model, LossConfig(kind=kind), mesh), tx, num_microbatches=num_microbatches)
    args = start(model, mesh, "replicated", tx), to_global(next(batches(1)), mesh)
    state, metrics = compiled(step, *args)(*args)
    moved = jax.tree.map(lambda before, after: before - np.asarray(after), first_params(model), state.params)
    for name, part in moved.items():
        assert float(metrics[f"grad_norm/{name}"]) == pytest.approx(float(optax.tree.norm(part)), rel=1e-4, abs=1e-6)
    return moved, float(metrics["loss"])


@functools.cache
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


RING, SUMS, GATHERS, SWAPS = "collective-permute", "all-reduce", "all-gather", "all-to-all"
FOUR_BY_TWO, BOTH = {"data": 4, "model": 2}, ("sigmoid", "softmax")


def dims(activations, parameters):
    return PartitionConfig(activation_dims=activations, parameter_dims=parameters)


# What is divided, over which mesh, what a step sends, and with which losses: the towers are the same to both.
STRATEGIES = {
    "replicated": ("replicated", {"data": 8}, {RING, SUMS}, BOTH),
    "fsdp": ("fsdp", {"data": 1, "fsdp": 8}, {RING, SUMS, GATHERS}, BOTH),
    "tensor": ("tensor", FOUR_BY_TWO, {RING, SUMS}, BOTH),
    "fsdp+tensor": ("fsdp+tensor", {"data": 2, "fsdp": 2, "model": 2}, {RING, SUMS, GATHERS}, BOTH),
    "dims 1 1": (dims(1, 1), FOUR_BY_TWO, {RING, SUMS, GATHERS}, ("sigmoid",)),
    "dims 1 2": (dims(1, 2), FOUR_BY_TWO, {RING, SUMS, GATHERS}, ("softmax",)),
    "dims 2 1": (dims(2, 1), FOUR_BY_TWO, {RING, SUMS, GATHERS, SWAPS}, ("softmax",)),
    "dims 2 2": (dims(2, 2), FOUR_BY_TWO, {RING, SUMS, GATHERS, SWAPS}, ("sigmoid",)),
    "rules": (
        (("mlp", "model"), ("embed", ("data", "fsdp"))),
        {"data": 2, "fsdp": 2, "model": 2},
        {RING, SUMS, GATHERS},
        ("sigmoid",),
    ),
}
# The gathering of a weight where it is used, alone or as a layer of several.
WEIGHT_IN_USE = re.compile(r"/(sharding_constraint|jit\(dynamic_index_in_dim\)/squeeze)$")


@pytest.fixture
def partitioned_anew():
    """Compiles with XLA's partitioner, whatever was compiled before: programs from the cache tell nothing."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def collectives(text):
    """The kind and the source of each collective of a program."""
    lines = re.findall(
        r"= (?:\(.*?\)|\S+) ((?:ragged-)?all-[a-z-]+?|reduce-scatter|collective-[a-z-]+?)(?:-start)?(\(.*)", text
    )
    return [(kind, (re.findall(r'op_name="([^"]*)"', rest) or [""])[0]) for kind, rest in lines]


@pytest.mark.parametrize(
    ("kind", "where"), [(kind, where) for where, (*_, kinds) in STRATEGIES.items() for kind in kinds]
)
def test_eight_devices_follow_the_losses_of_one_and_say_no_more_than_they_must(kind, where, capfd, request):
    name, sizes, needed, kinds = STRATEGIES[where]
    expected = train(kind, num_devices=1)[0]
    if kind == kinds[0]:
        request.getfixturevalue("partitioned_anew")
    capfd.readouterr()
    losses, state, text = train(kind, name, **sizes)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    sent = collectives(text)
    assert {kind for kind, _ in sent} == needed
    # Rows go round the ring of the loss and nowhere else.
    assert all("ppermute" in source for kind, source in sent if kind == RING)
    assert all("scatter-add" in source for kind, source in sent if kind == SWAPS)
    gathers = [source for kind, source in sent if kind == GATHERS]
    if "dims" not in where:
        assert all(WEIGHT_IN_USE.search(source) for source in gathers)
        assert len(gathers) <= 2 * len(jax.tree.leaves(state.params))


def test_a_move_at_any_cost_would_be_told(capfd, partitioned_anew):
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    here, there = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("a", "b"), (("a", "b", "c"),)))
    x = jax.ShapeDtypeStruct((24, 40), jnp.float32, sharding=here)
    compiled(jax.jit(lambda x: jax.lax.with_sharding_constraint(jnp.sin(x), there)), x)
    assert "Involuntary full rematerialization" in capfd.readouterr().err


def test_bytes_per_device_fall_as_one_over_n():
    _, whole, _ = train("sigmoid", data=8)
    _, state, _ = train("sigmoid", "fsdp", data=1, fsdp=8)
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params) if leaf.size <= 64)
    for before, after, copies in ((whole.params, state.params, 1), (whole.opt_state, state.opt_state, 2)):
        # Norms and scalars are whole everywhere, and of no weight in a model of size.
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(after))
        assert held <= sum(leaf.nbytes for leaf in jax.tree.leaves(before)) / 8 + copies * small + 64
        assert held == bytes_per_device(after)
    kernel = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
    moment = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    assert moment.sharding.is_equivalent_to(kernel.sharding, kernel.ndim)


@pytest.mark.parametrize(("kind", "num_devices"), [("sigmoid", 1), ("softmax", 4)])
def test_accumulated_gradients_equal_whole_ones(kind, num_devices):
    mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
    whole, whole_loss = gradient(kind, one_device(), 1)
    accumulated, loss = gradient(kind, mesh, 4)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    difference = optax.tree.norm(jax.tree.map(np.subtract, accumulated, whole))
    assert difference < 1e-5 * optax.tree.norm(whole)


def test_a_state_is_made_where_it_lives_and_from_weights_that_fit():
    mesh, tx = make_mesh(MeshConfig(data=1, fsdp=8)), optax.adam(1e-3)
    model = MODELS["sigmoid"]
    make = functools.partial(init, model, jax.random.key(0))
    placed = shardings(strategy("fsdp"), mesh, logical_axes(model), jax.eval_shape(make))
    abstract = abstract_state(make, tx, placed, mesh)
    state = create_state(make, tx, abstract)
    for made, want in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (made.shape, made.dtype) == (want.shape, want.dtype)
        assert made.sharding.is_equivalent_to(want.sharding, made.ndim)
    for made, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(first_params(model)), strict=True):
        np.testing.assert_allclose(np.asarray(made), want, atol=1e-6)
    wrong = {**first_params(model), "logit_bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"\['logit_bias'\]: expected \(\), got \(3,\)"):
        state_from_params(wrong, tx, abstract)


def test_a_large_state_is_drawn_in_parts_that_leave_room(monkeypatch):
    large = jax.eval_shape(functools.partial(init, preset("vit-l-14")), jax.random.key(0))
    sizes, there = [4 * leaf.size for leaf in jax.tree.leaves(large)], 0
    parts = clip_train.state._parts(sizes)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert len(parts) < 6  # programs to compile
    for part in parts:
        size = sum(sizes[i] for i in part)
        assert there + 2 * size <= 1.2 * sum(sizes)
        there += size

    def draw():
        keys = jax.random.split(jax.random.key(0), 3)
        return {name: jax.random.normal(key, (8, 16 * n)) for name, key, n in zip("cab", keys, (1, 5, 2), strict=True)}

    whole = NamedSharding(make_mesh(MeshConfig(data=1, fsdp=8)), PartitionSpec("fsdp"))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), jax.eval_shape(draw)
    )
    monkeypatch.setattr(clip_train.state, "_DRAWN_AT_ONCE", 0)
    made = clip_train.state.create_params(draw, abstract)
    jax.tree.map(np.testing.assert_array_equal, made, draw())
    assert {leaf.sharding for leaf in jax.tree.leaves(made)} == {whole}


def test_microbatches_need_a_loss_in_two_halves():
    with pytest.raises(ValueError, match="two halves"):
        make_step(lambda params, batch, key: (0.0, {}), optax.sgd(1.0), num_microbatches=2)


def test_only_matrices_decay():
    axes, params = logical_axes(MODEL), first_params(MODEL)
    tx = make_optimizer(AdamWConfig(weight_decay=1.0, clip_norm=None), 1.0, axes=axes)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for update, value, names in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), jax.tree.leaves(axes, is_leaf=is_names), strict=True
    ):
        matrix = sum(name != "layers" for name in names) >= 2
        np.testing.assert_allclose(update, -value if matrix else np.zeros_like(value))


def is_names(node):
    return isinstance(node, tuple)
