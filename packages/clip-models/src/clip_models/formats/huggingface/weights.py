"""The tensors of Hugging Face's models: their names and layouts beside ours."""

from __future__ import annotations

from clip_models.config import ClipConfig, TextConfig, VisionConfig
from clip_models.formats.huggingface.kinds import KINDS
from clip_models.formats.source import Pairs, Source, Sources, torch_attention, torch_linear, torch_norm, torch_patches

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_VIT_ATTENTION = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
}


def sources(model_type: str, config: ClipConfig, *, prefixed: bool = True) -> Sources:
    """Returns the source of every array of a config.

    Args:
        model_type: one of :data:`KINDS`.
        config: of the model.
        prefixed: whether the names of a tower's tensors begin with the tower's name.
    """
    return dict(_sources(model_type, config, prefixed=prefixed))


def _sources(model_type: str, config: ClipConfig, *, prefixed: bool) -> Pairs:
    family = KINDS[model_type].family
    if config.has_logits:
        ones = 0 if family == "clip" else 1
        yield "logit_scale", Source("logit_scale", ones=ones)
        if config.logit_bias_init is not None:
            yield "logit_bias", Source("logit_bias", ones=ones)
    if config.vision is not None:
        if family in ("vit", "dinov2"):
            yield from _vit(config.vision, f"{model_type}." if prefixed else "")
        else:
            yield from _vision(config.vision, "vision_model." if prefixed else "", is_linear=family == "siglip2")
        if config.projection_dim is not None:
            yield from torch_linear("vision/projection", "visual_projection", bias=config.vision.projection_bias)
    if config.text is not None:
        yield from _text(config.text, prefix := "text_model." if prefixed else "")
        if config.text_projection_dim is not None:
            name = "text_projection" if family == "clip" else f"{prefix}head"
            yield from torch_linear("text/projection", name, bias=config.text.projection_bias)


def _vision(config: VisionConfig, prefix: str, *, is_linear: bool) -> Pairs:
    theirs = f"{prefix}embeddings.patch_embedding"
    if is_linear:
        yield from torch_linear("vision/patch_embedding", theirs)
    else:
        yield from torch_patches(
            "vision/patch_embedding",
            theirs,
            patch_size=config.patch_size,
            width=config.width,
            bias=config.patch_bias,
        )
    yield "vision/position_embedding", Source(f"{prefix}embeddings.position_embedding.weight")
    if config.class_token:
        yield "vision/class_embedding", Source(f"{prefix}embeddings.class_embedding")
    if config.embed_norm:
        yield from torch_norm("vision/embed_norm", f"{prefix}pre_layrnorm")
    yield from _blocks("vision/blocks", f"{prefix}encoder.layers.{{layer}}")
    yield from torch_norm("vision/norm", f"{prefix}post_layernorm")
    if config.pool == "map":
        head = f"{prefix}head"
        yield "vision/map_head/probe", Source(f"{head}.probe", ones=1)
        yield from torch_attention("vision/map_head/attention", f"{head}.attention")
        yield from torch_norm("vision/map_head/norm", f"{head}.layernorm")
        yield from torch_linear("vision/map_head/mlp/fc1", f"{head}.mlp.fc1")
        yield from torch_linear("vision/map_head/mlp/fc2", f"{head}.mlp.fc2")


def _text(config: TextConfig, prefix: str) -> Pairs:
    yield "text/token_embedding", Source(f"{prefix}embeddings.token_embedding.weight")
    yield "text/position_embedding", Source(f"{prefix}embeddings.position_embedding.weight")
    yield from _blocks("text/blocks", f"{prefix}encoder.layers.{{layer}}")
    yield from torch_norm("text/norm", f"{prefix}final_layer_norm")


def _blocks(ours: str, theirs: str) -> Pairs:
    yield from torch_norm(f"{ours}/norm1", f"{theirs}.layer_norm1")
    for part, name in _ATTENTION.items():
        yield from torch_linear(f"{ours}/attention/{part}", f"{theirs}.self_attn.{name}")
    yield from torch_norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
    yield from torch_linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1")
    yield from torch_linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2")


def _vit(config: VisionConfig, prefix: str) -> Pairs:
    """ViT and DINOv2, the only one of the two with layer scale."""
    yield from torch_patches(
        "vision/patch_embedding",
        f"{prefix}embeddings.patch_embeddings.projection",
        patch_size=config.patch_size,
        width=config.width,
        bias=config.patch_bias,
    )
    yield "vision/position_embedding", Source(f"{prefix}embeddings.position_embeddings", ones=1)
    yield "vision/class_embedding", Source(f"{prefix}embeddings.cls_token", ones=2)
    if config.num_registers:
        yield "vision/registers", Source(f"{prefix}embeddings.register_tokens", ones=1)
    ours, theirs = "vision/blocks", f"{prefix}encoder.layer.{{layer}}"
    for part, name in _VIT_ATTENTION.items():
        yield from torch_linear(f"{ours}/attention/{part}", f"{theirs}.{name}")
    if config.layer_scale is None:
        yield from torch_norm(f"{ours}/norm1", f"{theirs}.layernorm_before")
        yield from torch_norm(f"{ours}/norm2", f"{theirs}.layernorm_after")
        yield from torch_linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense")
        yield from torch_linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense")
    else:
        yield from torch_norm(f"{ours}/norm1", f"{theirs}.norm1")
        yield from torch_norm(f"{ours}/norm2", f"{theirs}.norm2")
        yield f"{ours}/layer_scale1", Source(f"{theirs}.layer_scale1.lambda1")
        yield f"{ours}/layer_scale2", Source(f"{theirs}.layer_scale2.lambda1")
        yield from _dinov2_mlp(f"{ours}/mlp", f"{theirs}.mlp", is_gated=len(config.activations) == 2)
    yield from torch_norm("vision/norm", f"{prefix}layernorm")


def _dinov2_mlp(ours: str, theirs: str, *, is_gated: bool) -> Pairs:
    if is_gated:  # SwiGLU's two projections are one tensor
        yield from torch_linear(f"{ours}/fc1", f"{theirs}.weights_in", part=(0, 2))
        yield from torch_linear(f"{ours}/fc1_2", f"{theirs}.weights_in", part=(1, 2))
        yield from torch_linear(f"{ours}/fc2", f"{theirs}.weights_out")
    else:
        yield from torch_linear(f"{ours}/fc1", f"{theirs}.fc1")
        yield from torch_linear(f"{ours}/fc2", f"{theirs}.fc2")
