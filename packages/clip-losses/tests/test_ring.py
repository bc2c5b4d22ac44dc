import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh, PartitionSpec

from clip_losses import (
    sharded_sigmoid_loss,
    sharded_sigmoid_loss_and_grads,
    sharded_softmax_loss,
    sharded_softmax_loss_and_grads,
    sigmoid_loss,
    sigmoid_loss_and_grads,
    softmax_loss,
    softmax_loss_and_grads,
)

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
# name: loss, with grads, sharded, sharded with grads, scalars
FORMS = {
    "sigmoid": (
        sigmoid_loss,
        sigmoid_loss_and_grads,
        sharded_sigmoid_loss,
        sharded_sigmoid_loss_and_grads,
        (10.0, -5.0),
    ),
    "softmax": (softmax_loss, softmax_loss_and_grads, sharded_softmax_loss, sharded_softmax_loss_and_grads, (20.0,)),
}
COMMS = ["ring", "all_gather"]


def mesh_of(**sizes):
    devices = np.array(jax.devices()[: int(np.prod(list(sizes.values())))])
    return Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def arrays(oracle, b, scalars, **options):
    return tuple(jnp.asarray(x) for x in (*oracle.embeds(1, b, aligned=0.5, **options), *scalars))


def agree(got, want, error=1e-6):
    """Embeddings' gradients relative in norm; scalars to what they are a sum of, terms of the size of the loss."""
    loss = float(jnp.abs(jax.tree.leaves(want)[0]).max())
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = float(jnp.linalg.norm(y)) if y.ndim else max(abs(float(y)), loss)
        assert float(jnp.linalg.norm(x - y)) <= error * size


def in_specs(num):
    return (ROWS, ROWS, *[WHOLE] * (num - 2))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("comm", "devices", "b_local"),
    [
        *[("ring", devices, b_local) for devices, b_local in ((1, 5), (2, 4), (3, 5), (4, 3), (8, 4), (8, 1))],
        *[("all_gather", devices, b_local) for devices, b_local in ((3, 4), (8, 3))],
    ],
)
def test_equals_one_device(oracle, name, comm, devices, b_local):
    _, loss_and_grads, sharded, sharded_and_grads, scalars = FORMS[name]
    b = devices * b_local
    args = arrays(oracle, b, scalars)
    rng = np.random.default_rng(devices)
    # Few ids, so that duplicates lie on different devices.
    options = {"image_ids": rng.integers(0, b // 2 + 1, b), "mask": rng.random(b) > 0.2}
    kwargs = {"mesh": mesh_of(data=devices), "comm": comm, "tile": (2, 3)}
    grad = jax.value_and_grad(lambda *a: sharded(*a, **kwargs), argnums=tuple(range(len(args))))
    agree(jax.jit(grad)(*args), loss_and_grads(*args))
    agree(sharded_and_grads(*args, **kwargs, **options), loss_and_grads(*args, **options))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("comm", COMMS)
def test_tuple_of_axes_beside_another_axis(oracle, name, comm):
    _, loss_and_grads, _, sharded_and_grads, scalars = FORMS[name]
    args = arrays(oracle, 12, scalars)
    mesh = mesh_of(data=2, fsdp=2, model=2)
    kwargs = {"mesh": mesh, "axis_name": ("data", "fsdp"), "comm": comm}
    agree(jax.jit(lambda *a: sharded_and_grads(*a, **kwargs))(*args), loss_and_grads(*args))


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"direction": "image_to_text"}, {"direction": "text_to_image"}]
)
@pytest.mark.parametrize("comm", COMMS)
def test_softmax_options(oracle, comm, options):
    args = arrays(oracle, 12, (20.0,))
    for more in ({}, {"impl": "dense"}) if comm == "ring" else ({}, {"tile": (3, 12)}):
        got = sharded_softmax_loss_and_grads(*args, mesh=mesh_of(data=4), comm=comm, **options, **more)
        agree(got, softmax_loss_and_grads(*args, **options))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("comm", "check_vma"), [("ring", True), ("ring", False), ("all_gather", True)])
def test_inside_a_strangers_shard_map(oracle, name, comm, check_vma):
    loss, loss_and_grads, _, _, scalars = FORMS[name]
    args = arrays(oracle, 12, scalars)
    everything = tuple(range(len(args)))
    specs, mesh = in_specs(len(args)), mesh_of(data=4, model=2)
    want = loss_and_grads(*args)

    def local(*a):
        return loss(*a, axis_name="data", comm=comm, tile=2)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=WHOLE, check_vma=check_vma)
    agree(jax.jit(jax.value_and_grad(mapped, everything))(*args), want)

    both = lambda *a: loss_and_grads(*a, axis_name="data", comm=comm, tile=2)  # noqa: E731
    mapped = jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=(WHOLE, specs), check_vma=check_vma)
    agree(jax.jit(mapped)(*args), want)

    inside = jax.value_and_grad(local, everything)
    if check_vma:
        mapped = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=(WHOLE, specs))
        agree(jax.jit(mapped)(*args), want)


def dense_with_collectives(image, text, scale):
    """A loss anybody would write: gather, compare with all, and end in a psum."""
    everybody = lax.all_gather(text, "data", tiled=True)
    x = scale * image @ everybody.T
    own = lax.axis_index("data") * len(image) + jnp.arange(len(image))
    losses = jax.nn.logsumexp(x, axis=1) - x[jnp.arange(len(image)), own]
    return lax.psum(losses.sum(), "data") / len(everybody)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_untracked_replication_follows_jax(oracle, mapping):
    """Inside, without vma: the gradients of any loss that ends in a psum, whose mean over devices is a parameter's."""
    image, text, scale = arrays(oracle, 12, (20.0,))

    def parameter_loss(loss):
        def of(weight, image, text, scale):
            return loss(image * weight, text, scale)

        return jax.grad(of, argnums=(0, 1))

    ours = parameter_loss(lambda *a: softmax_loss(*a, axis_name="data", direction="image_to_text", tile=2))
    weight = jnp.linspace(0.5, 1.5, image.shape[1])

    def run(function):
        def both(weight, image, text, scale):
            by_weight, by_image = function(weight, image, text, scale)
            return lax.pmean(by_weight, "data"), by_image

        if mapping == "pmap":
            split = lambda x: x.reshape(4, 3, -1)  # noqa: E731
            mapped = jax.pmap(both, axis_name="data", in_axes=(None, 0, 0, None), devices=jax.devices()[:4])
            by_weight, by_image = mapped(weight, split(image), split(text), scale)
            return by_weight[0], by_image.reshape(image.shape)
        mapped = jax.shard_map(
            both,
            mesh=mesh_of(data=4),
            in_specs=(WHOLE, ROWS, ROWS, WHOLE),
            out_specs=(WHOLE, ROWS),
            check_vma=False,
        )
        return mapped(weight, image, text, scale)

    got = run(ours)
    agree(got, run(parameter_loss(dense_with_collectives)), 1e-5)
    truth = parameter_loss(lambda *a: softmax_loss(*a, direction="image_to_text"))(weight, image, text, scale)
    agree(got[0], truth[0], 1e-5)


def collectives(text):
    names = re.findall(r" (collective-permute|all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(", text)
    return {name: names.count(name) for name in set(names)}


@pytest.mark.parametrize(
    ("name", "comm", "expected"),
    [
        # Two half blocks, each with its columns and their sums; then the halves' sums home.
        ("sigmoid", "ring", {"collective-permute": 2 * 2 + 2}),
        # A round of columns with maxima and masses, and one of columns with normalisers and sums.
        ("softmax", "ring", {"collective-permute": (2 * 3 + 4) + (2 * 3 + 2)}),
        ("sigmoid", "all_gather", {"all-gather": 1, "reduce-scatter": 1}),
    ],
)
def test_collectives_are_what_the_algorithm_needs(name, comm, expected):
    *_, sharded, _, scalars = FORMS[name]
    embeds = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    args = (embeds, embeds, *scalars)
    function = jax.value_and_grad(
        lambda *a: sharded(*a, mesh=mesh_of(data=8), comm=comm), argnums=tuple(range(len(args)))
    )
    found = collectives(jax.jit(function).lower(*args).compile().as_text())
    assert found.pop("all-reduce") >= 1
    assert found == expected


@pytest.mark.parametrize("name", FORMS)
def test_memory_per_device_does_not_grow_with_devices(name):
    *_, sharded, _, scalars = FORMS[name]
    b_local, e, tile = 2048, 512, 512
    bound = 16 * tile * tile + 4 * (tile + tile) * e + 32 * b_local + 12 * b_local * e
    for devices in (3, 8):
        embeds = jax.ShapeDtypeStruct((devices * b_local, e), jnp.float32)
        args = (embeds, embeds, *scalars)
        function = jax.value_and_grad(
            lambda *a, n=devices: sharded(*a, mesh=mesh_of(data=n), tile=tile), argnums=tuple(range(len(args)))
        )
        assert jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes <= bound


def test_permutes_come_before_the_work_they_hide_behind():
    """Each half block leaves before the work on the other half, in the loop over hops and after it."""
    embeds = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    function = jax.grad(lambda *a: sharded_sigmoid_loss(*a, mesh=mesh_of(data=8), tile=2), argnums=(0, 1))
    jaxpr = jax.make_jaxpr(function)(embeds, embeds, 10.0, -5.0)

    def stretches(jaxpr):
        names = [e.primitive.name for e in jaxpr.eqns if e.primitive.name in ("ppermute", "scan")]
        if "ppermute" in names:
            yield names
        for equation in jaxpr.eqns:
            for inner in jaxprs_in_params(equation.params):
                yield from stretches(inner)

    whole, hop = sorted(stretches(jaxpr.jaxpr), key=len, reverse=True)
    assert hop == ["ppermute", "ppermute", "scan"] * 2
    # First half's work, all hops, its sums home behind the second half's work, those home, rows finished.
    assert whole == ["scan", "scan", "ppermute", "scan", "ppermute", "scan", "scan"]
