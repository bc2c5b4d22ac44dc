"""big_vision's npz files of SigLIP and SigLIP 2: arrays alone, from which the architecture is inferred."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from clip_models.config import ClipConfig, PreprocessConfig, TextConfig, VisionConfig
from clip_models.formats.source import Pairs, Shape, Source, Sources
from clip_models.formats.stored import Stored
from clip_models.formats.tensor_file import TensorFiles, open_npz

_GEMMA = 256000  # the size of its vocabulary
_ENCODERS = {"vision": "img/Transformer", "text": "txt/Encoder_0"}


def open_big_vision(path: Path, *, config: ClipConfig | None = None) -> Stored:
    """Opens a file; see :func:`clip_models.load_pretrained`.

    The image size is taken to be what the patches cover: a config must be given where it is more (so400m at 384 pixels,
    of which 27 patches of 14 see 378), or where the positions are no square grid.

    Args:
        path: of the file.
        config: of the model. None: it is inferred.

    Returns:
        The model.

    Raises:
        ValueError: the file holds no two-tower model, or one that is not inferred.
    """
    files = open_npz(path)
    names = {name.removeprefix("params/"): name for name in files if not name.startswith("opt/")}
    files = files.select(names)
    config = config or _infer(files, path)
    is_scanned = any("/encoderblock/" in name for name in files)
    return Stored(config, files, _sources(config, files, is_scanned=is_scanned), str(path))


def _infer(files: TensorFiles, path: Path) -> ClipConfig:
    shapes = files.shapes
    try:
        kernel, positions = shapes["img/embedding/kernel"], shapes["img/pos_embedding"]
        vision = _infer_tower(shapes, _ENCODERS["vision"])
        vocab_size = shapes["txt/Embed_0/embedding"][0]
        text = _infer_tower(shapes, _ENCODERS["text"])
        max_length, projection = shapes["txt/pos_embedding"][1], shapes["txt/head/kernel"]
    except KeyError as error:
        raise ValueError(
            f"{path} must hold SigLIP's two towers for its architecture to be inferred; it has no {error}: "
            "give the architecture as config=."
        ) from error
    is_flexible = len(kernel) == 2  # NaFlex has the patches as vectors, and a grid of positions
    patch_size = math.isqrt(kernel[0] // 3) if is_flexible else kernel[0]
    num_positions = positions[0] * positions[1] if is_flexible else positions[1]
    side = math.isqrt(num_positions)
    if side**2 != num_positions:
        raise ValueError(
            f"{path} has {num_positions} positions of patches, which are no square: give the architecture as config=."
        )
    head = shapes.get("img/head/kernel")
    embed_dim = vision["width"] if head is None else head[1]
    if projection[1] != embed_dim:
        raise ValueError(f"both towers must have embeddings of one size; {path} has {embed_dim} and {projection[1]}.")
    return ClipConfig(
        vision=VisionConfig(
            **vision,
            image_size=side * patch_size,
            patch_size=patch_size,
            flexible=is_flexible,
            pool="map" if "img/MAPHead_0/probe" in files else "gap",
            projection_bias=head is not None,
        ),
        text=TextConfig(
            **text,
            vocab_size=vocab_size,
            max_length=max_length,
            pool="map" if "txt/MAPHead_0/probe" in files else "last",
        ),
        projection_dim=None if head is None else embed_dim,
        logit_bias_init=-10.0 if "b" in files else None,
        preprocess=PreprocessConfig(
            resize_mode="naflex" if is_flexible else "squash",
            interpolation="bilinear",
            lower_case=vocab_size == _GEMMA,  # SigLIP 2 was trained on lower-cased text
        ),
    )


def _infer_tower(shapes: dict[str, Shape], encoder: str) -> dict[str, Any]:
    layers = [re.match(rf"{encoder}/encoderblock_(\d+)/", name) for name in shapes]
    indices = {int(match[1]) for match in layers if match is not None}
    block = f"{encoder}/encoderblock_0" if indices else f"{encoder}/encoderblock"
    width, num_heads, _ = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][-3:]
    return {
        "width": width,
        "num_layers": len(indices) or shapes[f"{block}/LayerNorm_0/scale"][0],
        "num_heads": num_heads,
        "mlp_dim": shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][-1],
    }


def _sources(config: ClipConfig, files: TensorFiles, *, is_scanned: bool) -> Sources:
    return dict(_pairs(config, files, is_scanned))


def _pairs(config: ClipConfig, files: TensorFiles, is_scanned: bool) -> Pairs:
    if config.has_logits:
        yield "logit_scale", Source("t", ones=1)
        if config.logit_bias_init is not None:
            yield "logit_bias", Source("b", ones=1)
    if (vision := config.vision) is not None:
        is_dense = len(files["img/embedding/kernel"].shape) == 2 if "img/embedding/kernel" in files else False
        patch = None if is_dense else (vision.patch_size, vision.patch_size, 3, vision.width)
        grid = (*vision.grid, vision.width) if is_dense else None
        yield "vision/patch_embedding/kernel", Source("img/embedding/kernel", split=patch)
        yield "vision/patch_embedding/bias", Source("img/embedding/bias")
        yield "vision/position_embedding", Source("img/pos_embedding", split=grid, ones=0 if is_dense else 1)
        yield from _tower(vision, "vision", "img", is_scanned)
        if config.projection_dim is not None:
            yield from _linear("vision/projection", "img/head", bias=vision.projection_bias)
    if config.text is not None:
        yield "text/token_embedding", Source("txt/Embed_0/embedding")
        yield "text/position_embedding", Source("txt/pos_embedding", ones=1)
        yield from _tower(config.text, "text", "txt", is_scanned)
        yield from _linear("text/projection", "txt/head", bias=config.text.projection_bias)


def _tower(config: VisionConfig | TextConfig, ours: str, theirs: str, is_scanned: bool) -> Pairs:
    encoder = _ENCODERS[ours]
    block = f"{encoder}/encoderblock" if is_scanned else f"{encoder}/encoderblock_{{layer}}"
    layers = (config.num_layers,) if is_scanned else ()
    yield from _norm(f"{ours}/blocks/norm1", f"{block}/LayerNorm_0")
    yield from _attention(config, f"{ours}/blocks/attention", block, layers)
    yield from _norm(f"{ours}/blocks/norm2", f"{block}/LayerNorm_1")
    yield from _mlp(f"{ours}/blocks/mlp", block)
    yield from _norm(f"{ours}/norm", f"{encoder}/encoder_norm")
    if config.pool == "map":
        head = f"{theirs}/MAPHead_0"
        yield f"{ours}/map_head/probe", Source(f"{head}/probe", ones=1)
        yield from _attention(config, f"{ours}/map_head/attention", head, ())
        yield from _norm(f"{ours}/map_head/norm", f"{head}/LayerNorm_0")
        yield from _mlp(f"{ours}/map_head/mlp", head)


def _attention(config: VisionConfig | TextConfig, ours: str, theirs: str, layers: Shape) -> Pairs:
    theirs = f"{theirs}/MultiHeadDotProductAttention_0"
    heads = (config.num_heads, config.head_dim)
    for part in ("query", "key", "value"):
        yield f"{ours}/{part}/kernel", Source(f"{theirs}/{part}/kernel", split=(*layers, config.width, *heads))
        yield f"{ours}/{part}/bias", Source(f"{theirs}/{part}/bias", split=(*layers, *heads))
    yield f"{ours}/out/kernel", Source(f"{theirs}/out/kernel", split=(*layers, *heads, config.width))
    yield f"{ours}/out/bias", Source(f"{theirs}/out/bias")


def _mlp(ours: str, theirs: str) -> Pairs:
    yield from _linear(f"{ours}/fc1", f"{theirs}/MlpBlock_0/Dense_0")
    yield from _linear(f"{ours}/fc2", f"{theirs}/MlpBlock_0/Dense_1")


def _norm(ours: str, theirs: str) -> Pairs:
    yield f"{ours}/scale", Source(f"{theirs}/scale")
    yield f"{ours}/bias", Source(f"{theirs}/bias")


def _linear(ours: str, theirs: str, *, bias: bool = True) -> Pairs:
    yield f"{ours}/kernel", Source(f"{theirs}/kernel")
    if bias:
        yield f"{ours}/bias", Source(f"{theirs}/bias")
