"""The `clip-models` command: the named architectures, as a table or one in full."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from clip_models.config import ClipConfig

_CLIENT_ERROR = 2
_COLUMNS = "{name:26} {params:>8} {image:>7} {patch:>5} {widths:>11} {layers:>7} {tokens:>6}  {loss}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 when done, 2 for a fault in what was asked for."""
    options = _parser().parse_args(arguments)
    try:
        options.action(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return _CLIENT_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip-models", description="The architectures that clip_models knows by name."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="one line for each")
    listing.add_argument("part", nargs="?", default="", help="only names with this in them, such as siglip2")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(action=_list)

    show = verbs.add_parser("show", help="one in full: its parameters by part, and its config as JSON")
    show.add_argument("name", help="as list prints it")
    show.add_argument("--json", action="store_true", help="all of it as JSON")
    show.set_defaults(action=_show)
    return parser


def _list(options: argparse.Namespace) -> None:
    from clip_models.presets import preset, presets

    names = [name for name in presets() if options.part in name]
    if not names:
        raise ValueError(f"no name has {options.part!r} in it; clip-models list shows them all.")
    if options.json:
        print(json.dumps([_row(name, preset(name)) for name in names], indent=2))
        return
    heads = {"name": "name", "params": "params/M", "image": "image", "patch": "patch", "widths": "width"}
    print(_COLUMNS.format(**heads, layers="layers", tokens="tokens", loss="loss"))
    for name in names:  # each is counted as it is printed
        row = _row(name, preset(name))
        language = "text" if row["text_width"] else "decoder"
        print(
            _COLUMNS.format(
                name=name,
                params=f"{row['num_params'] / 1e6:.2f}",
                image=row["image_size"],
                patch=row["patch_size"],
                widths=f"{row['vision_width']} + {row[f'{language}_width']}",
                layers=f"{row['vision_layers']} + {row[f'{language}_layers']}",
                tokens=row["text_length"],
                loss=row["loss"],
            ),
            flush=True,
        )


def _show(options: argparse.Namespace) -> None:
    from clip_models.presets import preset

    config = preset(options.name)
    counts, contents = _counts(config), dataclasses.asdict(config)
    if options.json:
        print(json.dumps({"name": options.name, "num_params": counts, "config": contents}, indent=2))
        return
    for part, count in counts.items():
        print(f"{part:24} {count:>15,}")
    print(json.dumps(contents, indent=2))


def _row(name: str, config: ClipConfig) -> dict[str, Any]:
    """What the table says of an architecture; a tower that it has not is None."""
    towers = {"vision": config.vision, "text": config.text, "decoder": config.decoder}
    return {
        "name": name,
        "num_params": _counts(config)["total"],
        "image_size": config.vision and config.vision.image_size,
        "patch_size": config.vision and config.vision.patch_size,
        **{f"{tower}_width": part and part.width for tower, part in towers.items()},
        **{f"{tower}_layers": part and part.num_layers for tower, part in towers.items()},
        "text_length": config.preprocess.text_length,
        "loss": _loss(config),
    }


def _loss(config: ClipConfig) -> str:
    """The loss that an architecture is made for: a bias of the logits tells the sigmoid's from the softmax's."""
    if config.text is None:
        return "caption"
    return "softmax" if config.logit_bias_init is None else "sigmoid"


def _counts(config: ClipConfig) -> dict[str, int]:
    """Counts parameters by tower and, within, by what they belong to; from shapes alone."""
    import jax

    from clip_models.clip import init
    from clip_models.params import shapes

    counts = {"total": 0}
    for name, shape in shapes(jax.eval_shape(lambda: init(config, jax.random.key(0)))).items():
        tower, *parts = name.split("/")
        for key in ("total", tower, *(f"{tower}/{part}" for part in parts[:1])):
            counts[key] = counts.get(key, 0) + math.prod(shape)
    return dict(sorted(counts.items(), key=lambda item: (item[0] != "total", item[0])))


if __name__ == "__main__":
    sys.exit(main())
