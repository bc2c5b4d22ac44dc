"""SigLIP's image towers, which open_clip takes from timm: their names there, and their tensors'."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from clip_models.config import VisionConfig
from clip_models.formats.source import Pairs, Source, torch_linear, torch_norm, torch_patches


class _Size(NamedTuple):
    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int


_SIZES = {
    "base": _Size(768, 12, 12, 3072),
    "large": _Size(1024, 24, 16, 4096),
    "so400m": _Size(1152, 27, 16, 4304),
    "giantopt": _Size(1536, 40, 16, 6144),
}
# Those with the tanh approximation of GELU, which all were trained with; the others have the exact one.
_TANH = {"vit_large_patch16_siglip_512", "vit_so400m_patch16", "vit_base_patch32", "vit_giantopt_patch16"}
NAMES = tuple(
    f"vit_{stem}_siglip_{size}"
    for stem, sizes in {
        "base_patch32": (256,),
        "base_patch16": (224, 256, 384, 512),
        "large_patch16": (256, 384, 512),
        "so400m_patch14": (224, 378, 384),
        "so400m_patch16": (256, 384, 512),
        "giantopt_patch16": (256, 384),
    }.items()
    for size in sizes
)


def timm_fields(name: str) -> dict[str, Any]:
    """Returns what an image tower is by its name in timm, as fields of a VisionConfig.

    Raises:
        ValueError: it is none of SigLIP's.
    """
    match = re.fullmatch(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)", name)
    if match is None or name not in NAMES:
        raise ValueError(f"timm_model_name must be one of SigLIP's, {', '.join(NAMES)}; got {name!r}.")
    size = _SIZES[match[1]]
    is_tanh = name in _TANH or name.partition("_siglip")[0] in _TANH
    return {
        **size._asdict(),
        "patch_size": int(match[2]),
        "image_size": int(match[3]),
        "activation": "gelu_tanh" if is_tanh else "gelu",
        "norm_eps": 1e-6,
        "pool": "map",
    }


def timm_name(config: VisionConfig) -> str | None:
    """Returns the name in timm that is nearest to an image tower, whatever the size of its images.

    Args:
        config: of the tower.

    Returns:
        The name of one with the same dims, and if there is one the same activation. None: no dims are the same.
    """
    names = sorted(NAMES, key=lambda name: not name.endswith(f"_{config.image_size}"))
    for ignored in (("image_size",), ("image_size", "activation")):
        for name in names:
            fields = timm_fields(name)
            if all(getattr(config, field) == value for field, value in fields.items() if field not in ignored):
                return name
    return None


def timm_sources(config: VisionConfig) -> Pairs:
    """Yields the sources of SigLIP's image tower."""
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    size = {"patch_size": config.patch_size, "width": config.width}
    yield from torch_patches("vision/patch_embedding", f"{trunk}.patch_embed.proj", **size, bias=True)
    yield "vision/position_embedding", Source(f"{trunk}.pos_embed", ones=1)
    ours, theirs = "vision/blocks", f"{trunk}.blocks.{{layer}}"
    yield from torch_norm(f"{ours}/norm1", f"{theirs}.norm1")
    for third, part in enumerate(("query", "key", "value")):
        yield from torch_linear(f"{ours}/attention/{part}", f"{theirs}.attn.qkv", part=(third, 3))
    yield from torch_linear(f"{ours}/attention/out", f"{theirs}.attn.proj")
    yield from torch_norm(f"{ours}/norm2", f"{theirs}.norm2")
    yield from torch_linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1")
    yield from torch_linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2")
    yield from torch_norm("vision/norm", f"{trunk}.norm")
    head = "vision/map_head"
    yield f"{head}/probe", Source(f"{pool}.latent", ones=1)
    yield from torch_linear(f"{head}/attention/query", f"{pool}.q")
    yield from torch_linear(f"{head}/attention/key", f"{pool}.kv", part=(0, 2))
    yield from torch_linear(f"{head}/attention/value", f"{pool}.kv", part=(1, 2))
    yield from torch_linear(f"{head}/attention/out", f"{pool}.proj")
    yield from torch_norm(f"{head}/norm", f"{pool}.norm")
    yield from torch_linear(f"{head}/mlp/fc1", f"{pool}.mlp.fc1")
    yield from torch_linear(f"{head}/mlp/fc2", f"{pool}.mlp.fc2")
