"""One table: this package's losses against the forms in use, as gradient steps on this machine.

    python packages/clip-losses/benchmarks/losses.py [--rows 4096] [--repeats 5]

Every form computes the loss and its gradients by all arguments. Time is CPU time, the minimum of interleaved repeats,
over that of the plain form differentiated by JAX, and over that of the three matrix products of our tiles alone, the
least that gradients cost; temp is what the compiled step allocates; the error is that of the image gradient at 512 rows
and scale 100, relative to float64. The other projects' forms are restated from their formulas, not copied.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clip_losses import sigmoid_loss, softmax_loss

WIDTH, CHUNK, BIAS = 512, 512, -10.0
TILE = 1024, 512  # what "auto" takes on CPU
dot = functools.partial(jnp.matmul, precision="highest")


def sigmoid_dense(image, text, scale, bias):
    """Sum over pairs of −log σ(z·x), as big_vision writes it on one device."""
    x = scale * dot(image, text.T) + bias
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(image)) - 1) * x).sum() / len(image)


def sigmoid_clip_jax(image, text, scale, bias):
    """A loop over chunks of texts, differentiated through, so that every chunk's logits are kept."""
    rows = jnp.arange(len(image))

    def chunk(total, start):
        x = scale * dot(image, lax.dynamic_slice_in_dim(text, start, CHUNK).T) + bias
        match = rows[:, None] == start + jnp.arange(CHUNK)
        return total - jax.nn.log_sigmoid(jnp.where(match, x, -x)).sum(), None

    return lax.scan(chunk, jnp.zeros(()), jnp.arange(0, len(image), CHUNK))[0] / len(image)


def sigmoid_open_clip(image, text, scale, bias):
    """Chunks again, as if all pairs were negative, and the positives put right at the end."""

    def chunk(total, start):
        x = scale * dot(image, lax.dynamic_slice_in_dim(text, start, CHUNK).T) + bias
        return total - jax.nn.log_sigmoid(-x).sum(), None

    total = lax.scan(chunk, jnp.zeros(()), jnp.arange(0, len(image), CHUNK))[0]
    return (total - (scale * (image * text).sum(1) + bias).sum()) / len(image)


def softmax_dense(image, text, scale):
    """One matrix of logits, normalised both ways."""
    x = scale * dot(image, text.T)
    return -(jnp.diag(jax.nn.log_softmax(x, 1)) + jnp.diag(jax.nn.log_softmax(x, 0))).mean() / 2


def softmax_open_clip(image, text, scale):
    """Logits per image and logits per text as two products."""
    rows = (jax.nn.log_softmax(scale * dot(a, b.T), 1) for a, b in ((image, text), (text, image)))
    return -sum(jnp.diag(row).mean() for row in rows) / 2


def products(image, text, scale):
    """Nothing but three products per tile, in our loop's order: the least that gradients cost."""

    height, width = TILE
    num_strips, num_cells = len(image) // height, len(text) // width

    def cell(i, sums):
        r, c = i // num_cells * height, i % num_cells * width
        row, col = lax.dynamic_slice_in_dim(image, r, height), lax.dynamic_slice_in_dim(text, c, width)
        g = dot(row, col.T)
        moved = []
        for total, start, product in ((sums[0], r, dot(g, col)), (sums[1], c, dot(g.T, row))):
            old = lax.dynamic_slice_in_dim(total, start, len(product))
            moved.append(lax.dynamic_update_slice_in_dim(total, old + product, start, 0))
        return tuple(moved)

    return lax.fori_loop(0, num_strips * num_cells, cell, (jnp.zeros_like(image), jnp.zeros_like(text)))


def embeds(rows):
    rng = np.random.default_rng(0)
    image, noise = rng.normal(size=(2, rows, WIDTH))
    pair = image, noise + 0.2 * image
    return tuple(jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32) for x in pair)


def image_gradient(kind, image, text, scale):
    """In float64 numpy, with 1 − p taken from the other probabilities."""
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    x, off = scale * image @ text.T, 1 - np.eye(len(image))
    if kind == "sigmoid":
        sign = 2 * off - 1
        return scale * (sign / (1 + np.exp(-sign * (x + BIAS)))) @ text / len(image)
    g = 0
    for axis in (1, 0):
        p = np.exp(x - x.max(axis, keepdims=True))
        p = off * p / p.sum(axis, keepdims=True)
        g = g + p - np.diag(p.sum(axis))
    return scale * g @ text / (2 * len(image))


def measure(steps, arguments, repeats):
    best = dict.fromkeys(steps, np.inf)
    for step in steps.values():
        jax.block_until_ready(step(*arguments))
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.process_time()
            jax.block_until_ready(step(*arguments))
            best[name] = min(best[name], time.process_time() - begin)
    return best


def table(kind, forms, rows, repeats):
    scalars = (BIAS,) if kind == "sigmoid" else ()
    everything = tuple(range(3 + len(scalars)))
    image, text = embeds(rows)
    arguments = (image, text, *(jnp.float32(x) for x in (10.0, *scalars)))
    steps = {
        name: jax.jit(jax.value_and_grad(form, everything)).lower(*arguments).compile() for name, form in forms.items()
    }
    floor = jax.jit(lambda image, text, scale, *_: products(image, text, scale)).lower(*arguments).compile()
    seconds = measure({**steps, "products": floor}, arguments, repeats)
    small = embeds(512)
    truth = image_gradient(kind, *small, 100.0)
    baseline = seconds["dense, autodiff"]
    for name, form in forms.items():
        got = jax.grad(form)(*small, 100.0, *scalars)
        error = np.linalg.norm(got - truth) / np.linalg.norm(truth)
        temp = steps[name].memory_analysis().temp_size_in_bytes / 2**20
        origin = " (big_vision's)" if form is sigmoid_dense else ""
        times = f"{seconds[name] / baseline:.2f} | {seconds[name] / seconds['products']:.2f}"
        print(f"| {kind} | {name}{origin} | {times} | {temp:,.0f} MiB | {error:.0e} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    ours = {
        "clip_losses, auto": {},
        "clip_losses, tiled": {"impl": "tiled"},
        "clip_losses, dense": {"impl": "dense"},
    }
    print(f"{arguments.rows} rows of {WIDTH}, float32, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| loss | form | time | × the products | temp | gradient error |\n|---|---|---|---|---|---|")
    forms = {"dense, autodiff": sigmoid_dense, "clip-jax's": sigmoid_clip_jax, "open_clip's": sigmoid_open_clip}
    forms |= {name: functools.partial(sigmoid_loss, **options) for name, options in ours.items()}
    table("sigmoid", forms, arguments.rows, arguments.repeats)
    forms = {"dense, autodiff": softmax_dense, "open_clip's": softmax_open_clip}
    forms |= {name: functools.partial(softmax_loss, **options) for name, options in ours.items()}
    table("softmax", forms, arguments.rows, arguments.repeats)


if __name__ == "__main__":
    main()
