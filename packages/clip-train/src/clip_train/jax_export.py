"""The towers of a model as `jax.export` programs, for who has jax and none of these packages.

Beside a model of our own format, `encode_image.jax` and `encode_text.jax` take its arrays by name and a batch of any
size, on a CPU, a GPU or a TPU; `programs.json` says which arrays, and how pictures and texts become inputs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from clip_data import Tokenizer
from clip_models import ClipConfig, encode_image, encode_text
from clip_models.params import flatten, unflatten
from clip_train.inputs import data_config
from clip_train.output import write_json

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAMS = "programs.json"

_LOADER = """\
import json

import jax
import jax.export
import numpy as np

directory = "DIRECTORY"
with open(f"{directory}/programs.json") as file:
    about = json.load(file)
with open(f"{directory}/{about['weights']}", "rb") as file:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
data = np.memmap(f"{directory}/{about['weights']}", np.uint8, "r", 8 + size)


def encoder(name):
    program = about["programs"][name]
    with open(f"{directory}/{program['file']}", "rb") as file:
        encode = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
    places = {array: header[array] for array in program["arrays"]}
    weights = {a: data[slice(*p["data_offsets"])].view("<f4").reshape(p["shape"]) for a, p in places.items()}
    weights = jax.device_put(weights)
    return lambda *inputs: encode(weights, *inputs)
"""
_RESIZE = {
    "squash": """\
    image = image.convert("RGB").resize(({width}, {height}), Image.Resampling.{interpolation})
""",
    "shortest": """\
    short = min(image.size)
    outer = int({width} * image.width / short), int({height} * image.height / short)
    left, top = (outer[0] - {width}) // 2, (outer[1] - {height}) // 2
    image = image.convert("RGB").resize(outer, Image.Resampling.{interpolation})
    image = image.crop((left, top, left + {width}, top + {height}))
""",
}
_PICTURES = """\


def pixels(image):
{resize}    return (np.asarray(image, np.float32) / 255 - np.float32({mean})) / np.float32({std})


image_embeds = encode_image(np.stack([pixels(Image.open(path)) for path in ["photo.jpg"]]))
"""
_PICTURES_ELSEWHERE = '# How a picture is resized ("{resize_mode}") and normalised: about["image"], of programs.json'
_TEXTS = """\

{punctuation}tokenizer = Tokenizer.from_file(f"{{directory}}/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation({text_length})
encoded = tokenizer.encode_batch({texts})
ids = np.full((len(encoded), {text_length}), {pad_id}, np.int32)
for row, text in zip(ids, encoded):
    row[: len(text.ids)] = text.ids
text_embeds = encode_text({arrays})
"""
_PUNCTUATION = 'punctuation = str.maketrans("_", " ", string.punctuation.replace("_", ""))\n'
_MASK = "np.int32([text.attention_mask + [0] * ({text_length} - len(text.ids)) for text in encoded])"
_LOGITS = """\
print(about["logit_scale"] * image_embeds @ text_embeds.T + (about["logit_bias"] or 0))
"""


def loader() -> str:
    """Python that opens the programs with jax and NumPy alone, in a DIRECTORY: `encoder("encode_image")` is one."""
    return _LOADER


def example_program(directory: Path) -> str:
    """Python that goes on from `loader`: it encodes a picture and two texts, as far as `programs.json` tells how.

    Args:
        directory: that `write_programs` wrote to.
    """
    about = json.loads((directory / PROGRAMS).read_text(encoding="utf-8"))
    image, text, encoders, imports, parts = about.get("image"), about.get("text"), [], [], []
    for name, program in about["programs"].items():
        inputs = ", ".join(f"{i['name']} {i['dtype']} [{', '.join(map(str, i['shape']))}]" for i in program["inputs"])
        encoders.append(f'{name} = encoder("{name}")  # {inputs}')
    # In a frame that is not square it depends on the picture which of its sides decides: no rule for a few lines.
    is_square = image is not None and image["height"] == image["width"]
    if image is not None and (image["resize_mode"] == "squash" or (image["resize_mode"] == "shortest" and is_square)):
        imports.append("from PIL import Image  # pip install pillow")
        filled = {**image, "interpolation": image["interpolation"].upper()}
        parts.append(_PICTURES.format(**filled, resize=_RESIZE[image["resize_mode"]].format(**filled)))
    elif image is not None:
        encoders.append(_PICTURES_ELSEWHERE.format(**image))
    if text is not None and (directory / "tokenizer.json").is_file():
        imports.append("from tokenizers import Tokenizer  # pip install tokenizers")
        masked = len(about["programs"]["encode_text"]["inputs"]) > 1
        arrays = f"ids, {_MASK.format(**text)}" if masked else "ids"
        texts, punctuation = _cleaned(**{name: text[name] for name in ("lower_case", "canonicalize")}), ""
        if text["canonicalize"]:
            imports.insert(0, "import string\n")
            punctuation = _PUNCTUATION
        parts.append(_TEXTS.format(**text, arrays=arrays, texts=texts, punctuation=punctuation))
    if len(parts) == 2:
        parts.append(_LOGITS)
    return "\n".join(imports) + "\n\n" * bool(imports) + "\n".join(encoders) + "\n" + "".join(parts)


def _cleaned(*, lower_case: bool, canonicalize: bool) -> str:
    """Two texts as they go to the tokenizer, by `clip_data.Tokenizer`'s rules."""
    texts, clean = '["a photo of a cat", "a photo of a dog"]', "text"
    if canonicalize:
        clean += ".translate(punctuation)"
    if lower_case:
        clean += ".lower()"
    if canonicalize:
        clean = f'" ".join({clean}.split())'
    return texts if clean == "text" else f"[{clean} for text in {texts}]"


def write_programs(directory: Path, config: ClipConfig, params: Mapping[str, Any]) -> None:
    """Write a model's towers as programs, and what they take.

    Args:
        directory: of the model, in our own format.
        config: of the model.
        params: its arrays.

    Raises:
        ValueError: it has neither an image tower nor a text tower, or its tokenizer cannot be opened.
    """
    if config.vision is None and config.text is None:
        raise ValueError("a program is of an image tower or a text tower; this model has neither")
    # The other implementations of attention are each of one platform.
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, attention="xla", remat="none"))
    about: dict[str, Any] = {
        "jax_version": jax.__version__,
        "platforms": PLATFORMS,
        "compute_dtype": config.compute.dtype,
        "weights": "model.safetensors",
        "logit_scale": math.exp(float(params["logit_scale"])) if "logit_scale" in params else None,
        "logit_bias": float(params["logit_bias"]) if "logit_bias" in params else None,
        "programs": {},
    }
    for name, (tower, inputs, encode) in _encoders(config).items():
        weights = {array: leaf for array, leaf in flatten(params).items() if array.startswith(f"{tower}/")}
        (directory / f"{name}.jax").write_bytes(_export(encode, weights, inputs))
        about["programs"][name] = {
            "file": f"{name}.jax",
            "arrays": list(weights),
            "inputs": [{"name": i, "shape": ["b", *shape], "dtype": kind} for i, (kind, shape) in inputs.items()],
            "output": {"shape": ["b", config.embed_dim], "dtype": "float32"},
        }
    write_json(directory / PROGRAMS, about | _facts(directory, config))


Inputs = dict[str, tuple[str, tuple[int, ...]]]


def _encoders(config: ClipConfig) -> dict[str, tuple[str, Inputs, Callable[..., jax.Array]]]:
    """By name: the tower, dtype and shape of each input of one sample, and the function of arrays and inputs."""
    encoders: dict[str, tuple[str, Inputs, Callable[..., jax.Array]]] = {}
    if config.vision is not None:
        preprocess = config.preprocess
        if preprocess.resize_mode == "naflex":
            patches = preprocess.max_patches
            images: Inputs = {
                "pixel_values": ("float32", (patches, config.vision.patch_size**2 * 3)),
                "pixel_attention_mask": ("int32", (patches,)),
                "spatial_shapes": ("int32", (2,)),
            }
        else:
            images = {"pixel_values": ("float32", (*_image_shape(config), 3))}

        def image(weights: Mapping[str, Any], *arrays: jax.Array) -> jax.Array:
            return encode_image(config, unflatten(weights), **dict(zip(images, arrays, strict=True)))

        encoders["encode_image"] = ("vision", images, image)
    if config.text is not None:
        names = ["input_ids"] + ["attention_mask"] * config.preprocess.mask_padding
        texts: Inputs = dict.fromkeys(names, ("int32", (config.preprocess.text_length,)))
        encoders["encode_text"] = (
            "text",
            texts,
            lambda weights, *arrays: encode_text(config, unflatten(weights), *arrays),
        )
    return encoders


def _export(encode: Callable[..., jax.Array], weights: Mapping[str, Any], inputs: Inputs) -> bytearray:
    (batch,) = jax.export.symbolic_shape("b")
    arrays = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    samples = [jax.ShapeDtypeStruct((batch, *shape), kind) for kind, shape in inputs.values()]
    return jax.export.export(jax.jit(encode), platforms=PLATFORMS)(arrays, *samples).serialize()


def _image_shape(config: ClipConfig) -> tuple[int, int]:
    size = config.preprocess.size
    return size if isinstance(size, tuple) else (size, size)


def _facts(directory: Path, config: ClipConfig) -> dict[str, Any]:
    """How pictures and texts become inputs, of a model in a directory."""
    facts: dict[str, Any] = {}
    preprocess = config.preprocess
    if config.vision is not None:
        height, width = _image_shape(config)
        facts["image"] = {
            "height": height,
            "width": width,
            "resize_mode": preprocess.resize_mode,
            "interpolation": preprocess.interpolation,
            "rescale": 1 / 255,
            "mean": preprocess.mean,
            "std": preprocess.std,
        }
        if preprocess.resize_mode == "naflex":
            facts["image"] |= {"patch_size": config.vision.patch_size, "max_patches": preprocess.max_patches}
    if config.text is not None:
        tokenizer = Tokenizer.of(data_config(config))
        beside = directory / "tokenizer.json"
        facts["text"] = {
            "tokenizer": beside.name if beside.is_file() else preprocess.tokenizer,
            "text_length": preprocess.text_length,
            "pad_id": preprocess.pad_id if tokenizer is None else tokenizer.pad_id,
            "lower_case": preprocess.lower_case,
            "canonicalize": preprocess.canonicalize,
        }
    return facts
