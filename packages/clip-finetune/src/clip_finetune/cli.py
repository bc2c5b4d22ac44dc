"""The `clip-finetune` command. Each verb imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clip_train.cli import add_config_arguments, config_path, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when done, 2 for a fault in what was asked for, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.action(options), debug=options.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clip-finetune", description="From a CLIP or SigLIP checkpoint to a task.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    classify = verbs.add_parser("classify", help="image classification: a linear probe on the image tower")
    add_config_arguments(classify, "the config")
    classify.set_defaults(action=_classify)
    return parser


def _classify(options: argparse.Namespace) -> int:
    from clip_finetune.classify import classify
    from clip_finetune.config import FinetuneConfig
    from clip_train.config_file import read_config

    return classify(read_config(FinetuneConfig, config_path(options.config), options.overrides))


if __name__ == "__main__":
    sys.exit(main())
