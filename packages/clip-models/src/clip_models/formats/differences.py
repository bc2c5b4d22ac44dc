"""What a format would change in a model: the options that it cannot express."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip_models.config import ClipConfig

# How a model is first drawn, trained and run is not what it is; nor are texts prepared by the files of weights.
_LEFT_ALONE = {
    "": {"compute", "logit_scale_init", "logit_bias_init"},
    "preprocess": {
        "size",
        "tokenizer",
        "text_length",
        "padding",
        "pad_id",
        "lower_case",
        "canonicalize",
        "mask_padding",
    },
    "tower": {"initialization", "dropout", "attention_dropout", "drop_path", "patch_dropout", "flexible"},
}


def differences(config: ClipConfig, read_back: ClipConfig | str) -> list[str]:
    """Lists the options of a model that a format loses.

    Args:
        config: of the model.
        read_back: what the format's files say of it, or why they could not be read.

    Returns:
        One ``field = value`` for each.
    """
    if isinstance(read_back, str):
        return [read_back]
    lost = []
    if config.decoder is not None:
        lost.append("decoder")
    if config.has_logits and (config.logit_bias_init is None) != (read_back.logit_bias_init is None):
        lost.append(f"logit_bias_init = {config.logit_bias_init}")
    for part in ("", "vision", "text", "preprocess"):
        ours, theirs = (config, read_back) if not part else (getattr(config, part), getattr(read_back, part))
        if ours is None or (part == "preprocess" and config.vision is None):  # what is compared of it is of pictures
            continue
        lost += [
            f"{part}.{name} = {value!r}".removeprefix(".")
            for name, value in _fields(ours, part).items()
            if value != _fields(theirs, part)[name]
        ]
    return lost


def _fields(config: Any, part: str) -> dict[str, Any]:
    left_alone = _LEFT_ALONE.get(part, _LEFT_ALONE["tower"])
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in left_alone and not dataclasses.is_dataclass(getattr(config, field.name))
    }
    if "layer_scale" in fields:
        fields["layer_scale"] = fields["layer_scale"] is not None
    if "eos_token_id" in fields and fields["pool"] != "first_eos":  # where it is not looked for, it says nothing
        fields["eos_token_id"] = None
    if "max_patches" in fields and fields["resize_mode"] != "naflex":
        fields["max_patches"] = 0
    return fields
