"""A large batch on one machine: peak bytes, time and error of the losses in use, up to a million pairs.

    python packages/clip-losses/benchmarks/large_batch.py [--pairs 32768 131072 1048576] [--time-up-to 131072]

Each form computes the loss and the gradients of both towers and the scalars, in a process of its own. Its peak is what
the compiled program takes with its arguments and results, known before it runs: a form that would not fit into the
memory that is free is refused with that number. Time is CPU time, also over that of the three matrix products that the
gradients need at least, in the same tiles. Above `--time-up-to` pairs only the peak is told: the time of forms that fit
goes with the square of the pairs. The error is that of the image gradient on some rows, relative to float64.
"""

import argparse
import functools
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from losses import BIAS, dot, products, sigmoid_dense, sigmoid_open_clip, softmax_dense, softmax_open_clip

from clip_losses import sigmoid_loss, softmax_loss

SCALE = 10.0
HEIGHT, WIDTH = 1024, 512  # a tile of Inf-CL's schedule here, which is ours
ERROR_ROWS = 32
LONG_ENOUGH = 5.0  # seconds


def over_tiles(body, init, count):
    """A loop over the tiles of one side."""
    return lax.fori_loop(0, count, body, init)


@jax.custom_vjp
def lse_rows(queries, keys):
    """The logsumexp of each query's logits, tile by tile: Inf-CL's forward, which keeps nothing else."""
    return _lse(queries, keys)


def _lse(queries, keys):
    def strip(r, lse):
        q = lax.dynamic_slice_in_dim(queries, r * HEIGHT, HEIGHT)

        def cell(c, carry):
            x = dot(q, lax.dynamic_slice_in_dim(keys, c * WIDTH, WIDTH).T)
            return jnp.logaddexp(carry, jax.nn.logsumexp(x, 1))

        row = over_tiles(cell, jnp.full(HEIGHT, -jnp.inf), len(keys) // WIDTH)
        return lax.dynamic_update_slice_in_dim(lse, row, r * HEIGHT, 0)

    return over_tiles(strip, jnp.zeros(len(queries)), len(queries) // HEIGHT)


def _lse_forward(queries, keys):
    lse = _lse(queries, keys)
    return lse, (queries, keys, lse)


def _lse_backward(kept, d_lse):
    """Inf-CL's backward: one sweep for the queries and one for the keys, each with the logits computed again."""
    queries, keys, lse = kept

    def probabilities(r, c):
        q, k = lax.dynamic_slice_in_dim(queries, r * HEIGHT, HEIGHT), lax.dynamic_slice_in_dim(keys, c * WIDTH, WIDTH)
        row = lax.dynamic_slice_in_dim(jnp.stack([lse, d_lse]), r * HEIGHT, HEIGHT, 1)
        return jnp.exp(dot(q, k.T) - row[0][:, None]) * row[1][:, None], q, k

    def of_queries(r, total):
        def cell(c, sums):
            p, _, k = probabilities(r, c)
            return sums + dot(p, k)

        sums = over_tiles(cell, jnp.zeros((HEIGHT, queries.shape[1])), len(keys) // WIDTH)
        return lax.dynamic_update_slice_in_dim(total, sums, r * HEIGHT, 0)

    def of_keys(c, total):
        def cell(r, sums):
            p, q, _ = probabilities(r, c)
            return sums + dot(p.T, q)

        sums = over_tiles(cell, jnp.zeros((WIDTH, keys.shape[1])), len(queries) // HEIGHT)
        return lax.dynamic_update_slice_in_dim(total, sums, c * WIDTH, 0)

    d_queries = over_tiles(of_queries, jnp.zeros_like(queries), len(queries) // HEIGHT)
    return d_queries, over_tiles(of_keys, jnp.zeros_like(keys), len(keys) // WIDTH)


lse_rows.defvjp(_lse_forward, _lse_backward)


def softmax_inf_cl(image, text, scale):
    """The schedule of Inf-CL's published kernels: each direction by itself, five products for its gradients."""
    positive = scale * (image * text).sum(1)
    return sum((lse_rows(scale * a, b) - positive).mean() for a, b in ((image, text), (text, image))) / 2


FORMS = {
    "softmax": {
        "ours": functools.partial(softmax_loss, impl="tiled"),
        "dense": softmax_dense,
        "open_clip's": softmax_open_clip,
        "Inf-CL's schedule": softmax_inf_cl,
    },
    "sigmoid": {
        "ours": functools.partial(sigmoid_loss, impl="tiled"),
        "dense": sigmoid_dense,
        "open_clip's": sigmoid_open_clip,
    },
}


def embeds(pairs, width):
    """Unit-norm float32 `[b, e]` of both sides, each text a little like its image."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(pairs, width)).astype(np.float32)
    text = rng.normal(size=(pairs, width)).astype(np.float32) + 0.2 * image
    for x in (image, text):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return image, text


def image_gradient(kind, image, text, rows):
    """Of some rows, in float64, with the other side a chunk at a time."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    x = SCALE * image[rows] @ text.T
    match = rows[:, None] == np.arange(len(text))
    if kind == "sigmoid":
        sign = np.where(match, -1.0, 1.0)
        return SCALE * (sign / (1 + np.exp(-sign * (x + BIAS)))) @ text / len(text)
    # Each logit is at most SCALE: no maximum needs to be taken out.
    columns = np.concatenate(
        [np.exp(SCALE * text[start : start + 2048] @ image.T).sum(1) for start in range(0, len(text), 2048)]
    )
    p = np.exp(x)
    return SCALE * (p / p.sum(1, keepdims=True) + p / columns - 2 * match) @ text / (2 * len(text))


def work(kind, form, pairs, width, runs):
    """Compile one form, tell its peak, and if it is to run its CPU time and error; as JSON lines."""
    function = FORMS[kind].get(form)
    scalars = (SCALE, BIAS) if kind == "sigmoid" else (SCALE,)
    if function is None:  # what every gradient needs at least
        step = jax.jit(products)
        scalars = (SCALE,)
    else:
        step = jax.jit(jax.value_and_grad(function, tuple(range(2 + len(scalars)))))
    shape = jax.ShapeDtypeStruct((pairs, width), np.float32)
    numbers = tuple(jax.ShapeDtypeStruct((), np.float32) for _ in scalars)
    compiled = step.lower(shape, shape, *numbers).compile()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    print(json.dumps({"peak": peak, "fits": peak < 0.9 * free}), flush=True)
    if not runs or peak >= 0.9 * free:
        return
    image, text = embeds(pairs, width)
    arguments = [jax.device_put(x) for x in (image, text, *map(np.float32, scalars))]
    times: list[float] = []
    while sum(times) < LONG_ENOUGH:
        begin = time.process_time()
        outputs = jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - begin)
    told = {"seconds": min(times)}
    if function is not None:
        rows = np.linspace(0, pairs - 1, ERROR_ROWS).astype(int)
        truth = image_gradient(kind, image, text, rows)
        told["error"] = float(np.linalg.norm(np.asarray(outputs[1][0])[rows] - truth) / np.linalg.norm(truth))
    print(json.dumps(told), flush=True)


def ask(kind, form, pairs, width, runs):
    """What a process of its own tells of a form."""
    words = [kind, form, str(pairs), str(width), str(int(runs))]
    done = subprocess.run([sys.executable, __file__, "--work", *words], stdout=subprocess.PIPE, text=True, check=False)
    told = {}
    for line in done.stdout.splitlines():
        told |= json.loads(line)
    return told


def in_words(told, floor):
    """(peak, time, over the products, error) as the table has them."""
    peak = f"{told['peak'] / 2**30:,.2f} GiB" if "peak" in told else "not compiled"
    if "seconds" not in told:
        return (f"refused: {peak}" if not told.get("fits", True) else peak, "", "", "")
    over = f"{told['seconds'] / floor:.2f}" if floor else ""
    return peak, f"{told['seconds']:,.1f} s", over, f"{told['error']:.0e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[32768, 131072, 1048576])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--time-up-to", type=int, default=131072, help="pairs; above, forms are only compiled")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        kind, form, *numbers = args.work
        work(kind, form, *map(int, numbers))
        return
    print(f"Width {args.width}, float32, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| pairs | loss | form | peak | CPU time | × the products | gradient error |\n|--:|---|---|--:|--:|--:|--:|")
    for pairs in args.pairs:
        runs = pairs <= args.time_up_to
        floor = ask("softmax", "products", pairs, args.width, runs).get("seconds")
        for kind, forms in FORMS.items():
            for form in forms:
                cells = in_words(ask(kind, form, pairs, args.width, runs), floor)
                print(f"| {pairs:,} | {kind} | {form} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
