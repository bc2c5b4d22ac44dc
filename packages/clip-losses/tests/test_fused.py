"""What JAX's transformations make of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_losses import sigmoid_loss, sigmoid_loss_and_grads, softmax_loss, softmax_loss_and_grads

FORMS = {
    "sigmoid": (sigmoid_loss, sigmoid_loss_and_grads, (10.0, -5.0)),
    "softmax": (softmax_loss, softmax_loss_and_grads, (20.0,)),
}


def plain(name):
    """The loss in the words that autodiff needs, without tiles."""

    def sigmoid(image, text, scale, bias):
        sign = 2 * jnp.eye(len(image)) - 1
        return -jax.nn.log_sigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)

    def softmax(image, text, scale):
        x = scale * image @ text.T
        log_p = jax.nn.log_softmax(x, axis=1) + jax.nn.log_softmax(x, axis=0)
        return -jnp.diag(log_p).mean() / 2

    return {"sigmoid": sigmoid, "softmax": softmax}[name]


@pytest.fixture(params=FORMS)
def form(request, oracle):
    loss, loss_and_grads, scalars = FORMS[request.param]
    arguments = tuple(jnp.asarray(x) for x in (*oracle.embeds(0, 20), *scalars))
    return request.param, lambda *args: loss(*args, tile=8), lambda *args: loss_and_grads(*args, tile=8), arguments


def agree(got, want):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * float(jnp.abs(y).max()))


def test_grad_and_grads_agree_with_autodiff(form):
    name, loss, loss_and_grads, arguments = form
    everything = tuple(range(len(arguments)))
    want = jax.value_and_grad(plain(name), everything)(*arguments)
    agree(jax.value_and_grad(loss, everything)(*arguments), want)
    agree(loss_and_grads(*arguments), want)
    agree(jax.jit(jax.value_and_grad(jax.checkpoint(loss), everything))(*arguments), want)


def test_the_cotangent_multiplies(form):
    _, loss, _, arguments = form
    got = jax.grad(lambda *args: -3 * loss(*args))(*arguments)
    agree(got, -3 * jax.grad(loss)(*arguments))


def test_forward_mode(form):
    name, loss, _, arguments = form
    directions = tuple(jnp.ones_like(x) for x in arguments)
    agree(jax.jvp(loss, arguments, directions), jax.jvp(plain(name), arguments, directions))


def test_second_order_both_ways(form):
    name, loss, _, arguments = form
    direction = arguments[1]

    def along(f, image):
        return (jax.grad(f)(image, *arguments[1:]) * direction).sum()

    want = jax.grad(lambda image: along(plain(name), image))(arguments[0])
    agree(jax.grad(lambda image: along(loss, image))(arguments[0]), want)
    got = jax.jvp(lambda image: jax.grad(loss)(image, *arguments[1:]), (arguments[0],), (direction,))[1]
    agree(got, want)


def test_vmap_over_scales(form):
    _, loss, _, arguments = form
    scales = jnp.array([1.0, 10.0])
    batched = jax.vmap(lambda scale: jax.value_and_grad(loss)(*arguments[:2], scale, *arguments[3:]))(scales)
    for i, scale in enumerate(scales):
        single = jax.value_and_grad(loss)(*arguments[:2], scale, *arguments[3:])
        agree(jax.tree.map(lambda x, i=i: x[i], batched), single)


def test_gradients_keep_the_arguments_dtypes(form):
    _, loss, loss_and_grads, arguments = form
    low = tuple(x.astype(jnp.bfloat16) for x in arguments)
    grads = jax.grad(loss, argnums=tuple(range(len(low))))(*low)
    assert [g.dtype for g in grads] == [g.dtype for g in loss_and_grads(*low)[1]] == [x.dtype for x in low]


def test_an_eager_call_compiles_once(form):
    _, loss, _, arguments = form
    compiled = []

    def count(event, duration, **kwargs):
        compiled.append(event) if "backend_compile" in event else None

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        jax.grad(loss)(*(x + 0 for x in arguments))
        first = len(compiled)
        jax.grad(loss)(*(x + 0 for x in arguments))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) == first
