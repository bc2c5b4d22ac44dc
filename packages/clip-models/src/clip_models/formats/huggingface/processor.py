"""Hugging Face's image processors, in the layouts of transformers 4 and 5, as a PreprocessConfig, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip_models.config import ClipConfig, Interpolation, PreprocessConfig, ResizeMode
from clip_models.formats.huggingface.kinds import KINDS
from clip_models.formats.stored import read_json
from clip_models.presets import OPENAI_MEAN, OPENAI_STD

_HALVES = (0.5, 0.5, 0.5)
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}


class _Default(NamedTuple):
    """What the processor of a family does where its file does not say."""

    resize_mode: ResizeMode
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    processor_type: str


_DEFAULTS = {
    "clip": _Default("shortest", 3, OPENAI_MEAN, OPENAI_STD, "CLIPImageProcessor"),
    "siglip": _Default("squash", 3, _HALVES, _HALVES, "SiglipImageProcessor"),
    "siglip2": _Default("naflex", 2, _HALVES, _HALVES, "Siglip2ImageProcessor"),
    "vit": _Default("squash", 2, _HALVES, _HALVES, "ViTImageProcessor"),
    "dinov2": _Default("shortest", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "BitImageProcessor"),
}


def read_processor_files(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Returns the file of a directory's image processor and its settings; none where it has no file of one."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        if path.is_file():
            contents = read_json(path)
            contents = contents.get("image_processor") or contents
            if "image_processor_type" in contents or "image_mean" in contents or "size" in contents:
                return path, contents
    return directory / "preprocessor_config.json", {}


def read_processor(family: str, processor: Mapping[str, Any]) -> PreprocessConfig:
    """Translates the settings of an image processor.

    Args:
        family: of :class:`Kind`.
        processor: the settings; what they leave out is the family's default.

    Returns:
        What the model expects. ViT's and DINOv2's models, whose processors resize as they like, expect the size that
        their positions were learnt at.

    Raises:
        ValueError: it makes pictures in a way that a PreprocessConfig cannot say.
    """
    default = _DEFAULTS[family]
    resample = processor.get("resample", default.resample)
    if resample not in _INTERPOLATIONS:
        raise ValueError(f"resample must be 2 (bilinear) or 3 (bicubic); got {resample}.")
    if not processor.get("do_resize", True):
        raise ValueError("do_resize must be true: a model expects pictures of one size, or so many patches.")
    mean, std = processor.get("image_mean") or default.mean, processor.get("image_std") or default.std
    if not processor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # theirs are of pixels from 0 to 255 after a factor, ours of pixels from 0 to 1
    largest = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    fields: dict[str, Any] = {
        "interpolation": _INTERPOLATIONS[resample],
        "mean": tuple(value / largest for value in mean),
        "std": tuple(value / largest for value in std),
    }
    if family == "siglip2":
        return PreprocessConfig(**fields, resize_mode="naflex", max_patches=processor.get("max_num_patches", 256))
    size = processor.get("size") or {}
    crops = processor.get("do_center_crop", default.resize_mode == "shortest")
    mode = default.resize_mode
    if isinstance(size, Mapping) and size:
        if "shortest_edge" not in size and not {"height", "width"} <= size.keys():
            raise ValueError(f"size must have height and width, or shortest_edge; got {size}.")
        mode = "shortest" if "shortest_edge" in size else "squash"
    if mode == "shortest" and not crops:
        raise ValueError(
            "do_center_crop must be true where size is shortest_edge: a model expects pictures of one size."
        )
    if family in ("vit", "dinov2"):
        return PreprocessConfig(**fields, resize_mode=mode)
    crop = (processor.get("crop_size") or {}) if crops else {}
    return PreprocessConfig(**fields, resize_mode=mode, size=_one_size(size, crop))


def write_processor(model_type: str, config: ClipConfig) -> dict[str, Any]:
    """Describes what a model expects of its pictures as the settings of its class's image processor.

    Args:
        model_type: one of :data:`KINDS`.
        config: of the model.

    Returns:
        The settings, without those that the class cannot express.
    """
    default, preprocess, vision = _DEFAULTS[KINDS[model_type].family], config.preprocess, config.vision
    resample = {name: number for number, name in _INTERPOLATIONS.items()}[preprocess.interpolation]
    contents: dict[str, Any] = {
        "image_processor_type": default.processor_type,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "resample": resample,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if vision is None:
        return {}
    if default.resize_mode == "naflex":
        return {**contents, "max_num_patches": preprocess.max_patches, "patch_size": vision.patch_size}
    side = vision.image_shape[0]  # the models know squares only
    whole = {"height": side, "width": side}
    if default.resize_mode == "squash":
        return {**contents, "size": whole}
    if preprocess.resize_mode == "squash":
        return {**contents, "size": whole, "do_center_crop": False}
    return {**contents, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": whole}


def _one_size(size: Any, crop: Any) -> int | tuple[int, int]:
    """The size of the picture that resizing and cropping make, which must agree; 0 where neither says."""
    sizes = []
    for given in (size, crop):  # in the oldest exports a number is a side
        if isinstance(given, int):
            sizes.append((given, given))
        elif "shortest_edge" in given:
            sizes.append((given["shortest_edge"],) * 2)
        elif given:
            sizes.append((given["height"], given["width"]))
    if len(set(sizes)) > 1:
        raise ValueError(f"the image processor must resize and crop to one size; got size={size}, crop_size={crop}.")
    return sizes[0] if sizes else 0
