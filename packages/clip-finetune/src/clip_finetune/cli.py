"""The `clip-finetune` command. Each verb imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clip_train.cli import add_config_arguments, config_path, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when done, 2 for a fault in what was asked for, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.action(options), debug=options.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clip-finetune", description="From a CLIP or SigLIP checkpoint to a task.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    classify = verbs.add_parser("classify", help="image classification: from a zero-shot head to full fine-tuning")
    _add_task_arguments(classify, data="a folder of class folders, or labelled shards", to="runs/classify")
    classify.set_defaults(action=_classify, tower="vision")

    text = verbs.add_parser(
        "text", help="text classification by the text tower, in the same modes; or, by its config, sentence embedding"
    )
    _add_task_arguments(text, data="labelled texts: csv, tsv, parquet or shards", to="runs/text")
    text.set_defaults(action=_classify, tower="text")

    pairs = verbs.add_parser("pairs", help="contrastive tuning on your own pairs of pictures and texts")
    add_config_arguments(pairs, "the config")
    pairs.add_argument("--dry-run", action="store_true", help="check everything, show what would happen, and stop")
    pairs.set_defaults(action=_pairs)

    predict = verbs.add_parser(
        "predict", help="classify pictures or texts, or embed texts, with what classify or text made"
    )
    predict.add_argument(
        "--model", required=True, help="the output directory of classify or text, or a classifier of transformers"
    )
    given = predict.add_mutually_exclusive_group(required=True)
    given.add_argument("--images", nargs="+", help="paths or globs of pictures")
    given.add_argument("--texts", help="a .txt of one text a line, or a .csv, .tsv or .parquet with a column of texts")
    predict.add_argument(
        "--to", default="predictions.csv", help="a .csv or .parquet, the latter for embeddings (default: %(default)s)"
    )
    predict.add_argument("--batch-size", type=int, default=64, help="pictures or texts at once (default: %(default)s)")
    predict.set_defaults(action=_predict)
    return parser


def _add_task_arguments(parser: argparse.ArgumentParser, *, data: str, to: str) -> None:
    add_config_arguments(parser, "the config; or give --model and --data", optional=True)
    parser.add_argument("--model", help="a run's directory, a model's directory, or a name on the Hugging Face Hub")
    parser.add_argument("--data", help=data)
    parser.add_argument("--mode", help="zero-shot, probe, attention, full, lora or wise-ft (default: probe)")
    parser.add_argument("--to", help=f"the output directory (default: {to})")


def _classify(options: argparse.Namespace) -> int:
    from clip_finetune.asked import asked_of, sentences_asked_of

    file = None if options.config is None else config_path(options.config)
    flags = {"model": options.model, "data": options.data, "mode": options.mode, "output_dir": options.to}
    if options.tower == "text" and file is not None:
        sentences = sentences_asked_of(file, options.overrides, **flags)
        if sentences is not None:
            from clip_finetune.sentences import embed_sentences

            return embed_sentences(sentences)
    from clip_finetune.classify import classify

    default = "runs/classify" if options.tower == "vision" else "runs/text"
    return classify(asked_of(file, options.overrides, **flags, default_output=default), tower=options.tower)


def _pairs(options: argparse.Namespace) -> int:
    from clip_finetune.pairs import PairsConfig, pairs
    from clip_train.config_file import read_config

    return pairs(read_config(PairsConfig, config_path(options.config), options.overrides), dry_run=options.dry_run)


def _predict(options: argparse.Namespace) -> int:
    from clip_finetune.predict import predict, predict_texts

    if options.texts is not None:
        return predict_texts(options.model, options.texts, Path(options.to), batch_size=options.batch_size)
    return predict(options.model, options.images, Path(options.to), batch_size=options.batch_size)


def command() -> None:
    """The console's `clip-finetune`: `main`, in a process that is prepared for what it computes."""
    if len(sys.argv) > 1 and not {"-h", "--help"} & set(sys.argv):
        from clip_train.host import prepare_host

        prepare_host()
    sys.exit(main())


if __name__ == "__main__":
    command()
