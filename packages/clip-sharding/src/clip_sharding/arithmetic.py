"""The arithmetic of one instruction: products and convolutions, and those that libraries do, where the text tells."""

from __future__ import annotations

import functools
import itertools
import math
import re

from clip_sharding.hlo import Array, Computation, Instruction

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LIBRARIES = ("__cublas", "__cudnn", "__onednn", "tpu_custom")
_CONTRACTING = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_GROUP_COUNT = re.compile(r"(feature|batch)_group_count=(\d+)")
# Of cuDNN's attention: the shape of its weights [b, heads, q, t], and its products.
_WEIGHTS = re.compile(r'"intermediate_tensor_shape":\{[^[]*"dimensions":\[([\d,"]*)\]')
_PRODUCTS = re.compile(r'"bmm\w+_dot_dimension_numbers"')


def arithmetic(one: Instruction, computation: Computation) -> float | None:
    """The FLOPs of matrix products and convolutions of an instruction, which is no fusion; None: it does not tell.

    Args:
        one: the instruction.
        computation: its own.
    """
    operands = [computation.instructions[name].arrays for name in one.operands if name in computation.instructions]
    match one.opcode:
        case "dot":
            return _product(one, operands[0][0])
        case "convolution":
            return _convolution(one, operands[0][0], operands[1][0], one.arrays[0])
        case "custom-call" if (target := _library(one)) is not None:
            return _of_library(target, one, operands)
    return 0.0


def is_workspace(one: Instruction, array: Array) -> bool:
    """Whether an array that an instruction seems to make is what a library asks for to work in."""
    return _library(one) is not None and array is one.arrays[-1] and len(one.arrays) > 1 and array.dtype in ("s8", "u8")


def _library(one: Instruction) -> str | None:
    target = _TARGET.search(one.attributes) if one.opcode == "custom-call" else None
    return target[1] if target is not None and target[1].startswith(_LIBRARIES) else None


def _of_library(target: str, one: Instruction, operands: list[tuple[Array, ...]]) -> float | None:
    if target.startswith("__cublas") and _CONTRACTING.search(one.attributes):
        return _product(one, operands[0][0])
    if target.startswith("__cudnn$conv") and len(operands) >= 2:
        first, second, made = operands[0][0], operands[1][0], one.arrays[0]
        # The labels are those of the convolution whose gradient it may be: of images, kernel and result.
        if "BackwardInput" in target:
            return _convolution(one, made, second, first)
        if "BackwardFilter" in target:
            return _convolution(one, first, made, second)
        return _convolution(one, first, second, made)
    if target.startswith("__cudnn$fmha") and (weights := _WEIGHTS.search(one.attributes)):
        # The way back makes the weights again, from queries and keys.
        products = len(_PRODUCTS.findall(one.attributes)) + ("Backward" in target)
        # Of a causal one at least the half is done that is not zero.
        share = 0.5 if re.search(r'"mask_type":"\w*CAUSAL"', one.attributes) else 1.0
        return share * products * 2.0 * math.prod(_numbers(weights[1])) * one.arrays[0].dims[-1]
    return None


def _product(one: Instruction, left: Array) -> float:
    found = _CONTRACTING.search(one.attributes)
    contracted = _numbers(found[1]) if found else []
    return 2.0 * math.prod(one.arrays[0].dims) * math.prod(left.dims[i] for i in contracted)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _convolution(one: Instruction, left: Array, right: Array, made: Array) -> float:
    """As XLA counts them: what falls on padding and between dilated elements is no work."""
    labels, window = _LABELS.search(one.attributes), _WINDOW.search(one.attributes)
    if labels is None:
        raise ValueError(f"a convolution has dim_labels; got {one.name} with {one.attributes[:120]!r}")
    options = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    lhs, rhs, out = labels[1], labels[2], labels[3]
    groups = {kind: int(number) for kind, number in _GROUP_COUNT.findall(one.attributes)}
    batch = left.dims[lhs.index("b")] / groups.get("batch", 1)
    features = left.dims[lhs.index("f")] / groups.get("feature", 1) * right.dims[rhs.index("o")]
    spatial = sum(label.isdigit() for label in lhs)

    def option(name: str, default: str) -> list[str]:
        return options[name].split("x") if name in options else [default] * spatial

    positions = 1
    for i, size, stride, pad, lhs_dilate, rhs_dilate in zip(
        range(spatial),
        option("size", "1"),
        option("stride", "1"),
        option("pad", "0_0"),
        option("lhs_dilate", "1"),
        option("rhs_dilate", "1"),
        strict=True,
    ):
        positions *= _positions(
            left.dims[lhs.index(str(i))],
            made.dims[out.index(str(i))],
            int(size),
            int(stride),
            int(pad.split("_")[0]),
            int(lhs_dilate),
            int(rhs_dilate),
        )
    return 2.0 * batch * features * positions


@functools.lru_cache(maxsize=4096)
def _positions(inputs: int, outputs: int, size: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of output and window elements that meet an input."""
    if size == 1 and stride == 1 and pad == 0 and lhs_dilate == 1:
        return outputs
    met = 0
    for k, o in itertools.product(range(size), range(outputs)):
        at = o * stride - pad + k * rhs_dilate
        met += at % lhs_dilate == 0 and 0 <= at // lhs_dilate < inputs
    return met
