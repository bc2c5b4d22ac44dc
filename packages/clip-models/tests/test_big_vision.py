"""One file and its outputs are big_vision's own; others are made here from fixtures of transformers, by its layouts."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_models import apply, load_config, load_pretrained

SIGLIP = Path(__file__).parent / "fixtures" / "siglip"
SIGLIP2 = Path(__file__).parent / "fixtures" / "siglip2"
BIG_VISION = Path(__file__).parent / "fixtures" / "big_vision"  # ViT mu/16, made and run by big_vision in May 2025


def test_computes_what_big_vision_computes():
    config, params = load_pretrained(BIG_VISION / "siglip-mu.npz")
    golden = np.load(BIG_VISION / "siglip-mu.golden.npz")
    output = jax.jit(apply, static_argnums=0)(
        config, params, pixel_values=golden["in_pixel_values"], input_ids=golden["in_input_ids"]
    )
    for ours, theirs in (
        (output.image_embeds, golden["image_embeds"]),
        (output.text_embeds, golden["text_embeds"]),
        (output.logit_scale, golden["temperature"][0]),
        (output.logit_bias, golden["bias"][0]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def dense(tensors, name):
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def norm(tensors, name):
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def attention(tensors, names, heads):
    parts = {}
    for part, name in zip(("query", "key", "value", "out"), names, strict=True):
        weights = dense(tensors, name)
        width = len(weights["bias"])
        split = (heads, width // heads)
        if part == "out":
            parts[part] = {"kernel": weights["kernel"].reshape(*split, width), "bias": weights["bias"]}
        else:
            parts[part] = {"kernel": weights["kernel"].reshape(width, *split), "bias": weights["bias"].reshape(split)}
    return parts


def mlp(tensors, name):
    return {"Dense_0": dense(tensors, f"{name}.fc1"), "Dense_1": dense(tensors, f"{name}.fc2")}


def encoder(tensors, name, *, num_layers, heads, final, scan):
    blocks = []
    for i in range(num_layers):
        layer = f"{name}.encoder.layers.{i}"
        names = [f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        blocks.append(
            {
                "LayerNorm_0": norm(tensors, f"{layer}.layer_norm1"),
                "MultiHeadDotProductAttention_0": attention(tensors, names, heads),
                "LayerNorm_1": norm(tensors, f"{layer}.layer_norm2"),
                "MlpBlock_0": mlp(tensors, f"{layer}.mlp"),
            }
        )
    stacked = {"encoderblock": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
    apart = {f"encoderblock_{i}": block for i, block in enumerate(blocks)}
    return {**(stacked if scan else apart), "encoder_norm": norm(tensors, f"{name}.{final}")}


def write_npz(path, directory, *, scan, naflex=False):
    tensors = load_file(directory / "model.safetensors")
    head = "vision_model.head"
    for i, part in enumerate("qkv"):
        for kind in ("weight", "bias"):
            tensors[f"{part}.{kind}"] = np.split(tensors[f"{head}.attention.in_proj_{kind}"], 3)[i]
    patches = tensors["vision_model.embeddings.patch_embedding.weight"]
    positions = tensors["vision_model.embeddings.position_embedding.weight"]
    img = {
        "embedding": {
            "kernel": patches.T if naflex else patches.transpose(2, 3, 1, 0),
            "bias": tensors["vision_model.embeddings.patch_embedding.bias"],
        },
        "pos_embedding": positions.reshape(3, 3, -1) if naflex else positions[None],
        "Transformer": encoder(tensors, "vision_model", num_layers=2, heads=3, final="post_layernorm", scan=scan),
        "MAPHead_0": {
            "probe": tensors[f"{head}.probe"],
            "MultiHeadDotProductAttention_0": attention(tensors, ["q", "k", "v", f"{head}.attention.out_proj"], 3),
            "LayerNorm_0": norm(tensors, f"{head}.layernorm"),
            "MlpBlock_0": mlp(tensors, f"{head}.mlp"),
        },
    }
    txt = {
        "Embed_0": {"embedding": tensors["text_model.embeddings.token_embedding.weight"]},
        "pos_embedding": tensors["text_model.embeddings.position_embedding.weight"][None],
        "Encoder_0": encoder(tensors, "text_model", num_layers=3, heads=2, final="final_layer_norm", scan=scan),
        "head": dense(tensors, "text_model.head"),
    }
    params = {"img": img, "txt": txt, "t": tensors["logit_scale"], "b": tensors["logit_bias"]}
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "opt": {"count": np.zeros(3)}})
    return {"/".join(key.key for key in keys): leaf for keys, leaf in leaves}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("scan", [False, True])
def test_siglip(tmp_path, scan, save):
    arrays = write_npz(tmp_path, SIGLIP, scan=scan)
    save(tmp_path / "siglip.npz", **arrays)
    expected_config, expected = load_pretrained(SIGLIP)
    config, params = load_pretrained(tmp_path / "siglip.npz")
    assert config.vision.image_size == 18  # the fixture has 20 pixels a side, of which 3 patches of 6 see 18
    assert config.text == expected_config.text
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert load_config(tmp_path / "siglip.npz") == config
    given, params = load_pretrained(tmp_path / "siglip.npz", config=expected_config)
    assert given == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_siglip2_on_sequences_of_patches(tmp_path):
    np.savez(tmp_path / "naflex.npz", **write_npz(tmp_path, SIGLIP2, scan=True, naflex=True))
    expected_config, expected = load_pretrained(SIGLIP2)
    config, params = load_pretrained(tmp_path / "naflex.npz")
    assert (config.vision, config.text) == (expected_config.vision, expected_config.text)
    assert config.preprocess.resize_mode == "naflex"
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_bfloat16_as_numpy_writes_it(tmp_path):
    arrays = write_npz(tmp_path, SIGLIP, scan=False)
    np.savez(tmp_path / "half.npz", **{name: array.astype("bfloat16") for name, array in arrays.items()})
    _, params = load_pretrained(tmp_path / "half.npz", dtype="bfloat16")
    kernel = arrays["params/txt/head/kernel"].astype("bfloat16")
    np.testing.assert_array_equal(np.asarray(params["text"]["projection"]["kernel"]), kernel)


def test_what_cannot_be_inferred_is_asked_for(tmp_path):
    arrays = write_npz(tmp_path, SIGLIP, scan=False)
    oblong = {**arrays, "params/img/pos_embedding": arrays["params/img/pos_embedding"][:, :6]}
    np.savez(tmp_path / "oblong.npz", **oblong)
    with pytest.raises(
        ValueError, match="6 positions of patches, which are no square: give the architecture as config="
    ):
        load_pretrained(tmp_path / "oblong.npz")
    del arrays["params/txt/Embed_0/embedding"]
    np.savez(tmp_path / "half.npz", **arrays)
    with pytest.raises(ValueError, match="it has no 'txt/Embed_0/embedding': give the architecture as config="):
        load_pretrained(tmp_path / "half.npz")
    (tmp_path / "no.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"no.npz must be an npz file of arrays"):
        load_pretrained(tmp_path / "no.npz")
