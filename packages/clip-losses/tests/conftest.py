"""Eight host devices for the sharded tests, and the losses written out in float64 numpy."""

import os

_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):  # before jax starts its backend
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

from types import SimpleNamespace  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402


def embeds(seed, b, e=24, *, dtype=np.float32, aligned=0.0):
    """Two sides of unit rows; ``aligned`` moves each text towards its image."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, b, e))
    right = right + aligned * left
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (left, right)]
    return unit[0], unit[1]


def positives(b, image_ids, text_ids):
    same = np.eye(b, dtype=bool)
    for ids in (image_ids, text_ids):
        if ids is not None:
            same |= np.asarray(ids)[:, None] == np.asarray(ids)[None]
    return same


def _wide(left, right, mask):
    keep = np.ones(len(left), bool) if mask is None else np.asarray(mask)
    left, right = (np.where(keep[:, None], np.asarray(x, np.float64), 0) for x in (left, right))
    return left, right, keep, keep[:, None] & keep[None]


def sigmoid(left, right, scale, bias=0.0, *, image_ids=None, text_ids=None, mask=None, reduction="mean"):
    left, right, keep, pairs = _wide(left, right, mask)
    u = left @ right.T
    sign = np.where(positives(len(left), image_ids, text_ids), -1.0, 1.0)
    z = sign * (scale * u + bias)
    share = 1 / max(keep.sum(), 1) if reduction == "mean" else 1.0
    g = share * np.where(pairs, sign * _expit(z), 0)
    loss = share * np.where(pairs, np.logaddexp(0, z), 0).sum()
    return loss, (scale * g @ right, scale * g.T @ left, (g * u).sum(), g.sum())


def softmax(
    left,
    right,
    scale,
    *,
    image_ids=None,
    text_ids=None,
    mask=None,
    label_smoothing=0.0,
    direction="both",
    reduction="mean",
):
    left, right, keep, pairs = _wide(left, right, mask)
    u = left @ right.T
    same = positives(len(left), image_ids, text_ids) & pairs
    num = max(keep.sum(), 1)
    loss, g = 0.0, np.zeros_like(u)
    for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
        if direction in ("both", name):
            x = np.where(pairs, scale * u, -np.inf)
            top = np.where(keep, x.max(axis, initial=-np.inf), 0)
            shifted = np.exp(x - np.expand_dims(top, axis))
            mass = np.where(keep, shifted.sum(axis), 1)
            mass = np.expand_dims(mass, axis)
            p = shifted / mass
            count = np.maximum(same.sum(axis, keepdims=True), 1)
            q = (1 - label_smoothing) * same / count + label_smoothing / num * pairs
            # 1 − p from the other terms: p of a confident row is 1 to all of float64's digits.
            others = np.where(pairs, _sum_others(shifted, axis) / mass, 0)
            with np.errstate(divide="ignore"):
                log_p = np.where(
                    p > 0.5, np.log1p(-np.minimum(others, 0.75)), x - np.expand_dims(top, axis) - np.log(mass)
                )
            loss -= (q * np.where(pairs, log_p, 0)).sum()
            g += np.where(p > 0.5, (1 - q) - others, p - q)
    share = (1 / num if reduction == "mean" else 1.0) / (2 if direction == "both" else 1)
    g = share * np.where(pairs, g, 0)
    return share * loss, (scale * g @ right, scale * g.T @ left, (g * u).sum())


def _sum_others(x, axis):
    """For each element the sum of the others along ``axis``, without subtracting it from the total."""
    moved = np.moveaxis(x, axis, -1)
    zero = np.zeros_like(moved[..., :1])
    before = np.concatenate([zero, np.cumsum(moved, -1)[..., :-1]], -1)
    after = np.concatenate([np.cumsum(moved[..., ::-1], -1)[..., ::-1][..., 1:], zero], -1)
    return np.moveaxis(before + after, -1, axis)


def _expit(z):
    t = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, t) / (1 + t)


def relative(got, want):
    """Frobenius norm of the error over that of the truth."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


@pytest.fixture(scope="session")
def oracle():
    return SimpleNamespace(sigmoid=sigmoid, softmax=softmax, embeds=embeds, relative=relative, positives=positives)
