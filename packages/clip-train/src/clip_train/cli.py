"""The `clip-train` command: verbs and flags. A verb imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_train.config import TrainConfig

_CLIENT_ERROR = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when done, 2 for a fault in what was asked for, 128 + n when stopped by signal n."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.action(options), debug=options.debug)


def command() -> None:
    """The console's `clip-train`: `main`, in a process that is prepared for what the verb computes."""
    if set(sys.argv[1:]) & {"run", "eval", "embed", "search"} and not {"-h", "--help"} & set(sys.argv):
        from clip_train.host import prepare_host

        prepare_host()
    sys.exit(main())


def guarded(action: Callable[[], int], *, debug: bool) -> int:
    """Run a verb; a fault in what was asked for becomes one message, without a traceback unless `debug`."""
    try:
        return action()
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, debug=debug)


def _fail(error: BaseException, *, debug: bool) -> int:
    from clip_train.config_file import ConfigError
    from clip_train.processes import AgreedError, is_first, leave, several

    expected, agreed = isinstance(error, ConfigError | KeyboardInterrupt) and not debug, isinstance(error, AgreedError)
    if not expected and not several():
        raise error
    if not expected:
        traceback.print_exception(error)
    elif isinstance(error, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
    elif is_first() or not agreed:
        print(f"error: {error}", file=sys.stderr)
    interrupted = isinstance(error, KeyboardInterrupt)
    status = _INTERRUPTED if interrupted else _CLIENT_ERROR if isinstance(error, ConfigError) else 1
    if several() and not agreed:
        leave(status)
    return status


def add_config_arguments(parser: argparse.ArgumentParser, config_help: str, *, optional: bool = False) -> None:
    """Add the arguments that every verb with a config has."""
    parser.add_argument("config", nargs="?" if optional else None, help=config_help)
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a field of the config, such as data.seed=1; may be repeated",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which one of several processes finds the others; where the surroundings tell, none is."""
    group = parser.add_argument_group(
        "several processes", "needed only outside Cloud TPU, GKE, Slurm and Open MPI, which tell each process by itself"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, at any free port")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="of the run")


def config_path(given: str) -> str | Path:
    """The config file that a path stands for: itself, or a run's own."""
    if "://" in given:
        return given if given.endswith(".json") else f"{given.rstrip('/')}/config.json"
    path = Path(given)
    return path / "config.json" if path.is_dir() else path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip-train", description="Train CLIP and SigLIP models from one JSON config."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    init = verbs.add_parser("init", help="write a starting config for your own shards")
    init.add_argument("--shards", help="your shards: paths, globs, brace lists, gs:// or s3://")
    init.add_argument("--format", help="of the shards, such as tfrecord or parquet; guessed from their names")
    init.add_argument("--preset", help="the architecture, such as siglip-b-16-224")
    init.add_argument("--output-dir", help="where runs of this config write")
    init.add_argument("--batch-size", type=int, help="pairs in an update")
    init.add_argument("--train-samples", help="how long: pairs, or '30 epochs'")
    init.add_argument("--to", default="config.json", help="the file to write (default: %(default)s)")
    init.set_defaults(action=_init)

    run = verbs.add_parser("run", help="train, or continue a run that was stopped")
    add_config_arguments(run, "the config, or a run's directory")
    run.add_argument("--dry-run", action="store_true", help="check everything, show what would happen, and stop")
    run.add_argument("--profile", metavar="FIRST:LAST", help="trace these steps, for xprof and Perfetto")
    add_process_arguments(run)
    run.set_defaults(action=_run)

    plan = verbs.add_parser("plan", help="what a run takes of devices that need not be here: memory, time, chip-hours")
    add_config_arguments(plan, "the config, or a run's directory", optional=True)
    plan.add_argument("--topology", help="such as v5e:16x16, v5e-256, v4-128, cpu:8, or gpu for the one here")
    plan.add_argument("--fit", action="store_true", help="find the largest microbatch and the cheapest remat that fit")
    plan.add_argument("--json", metavar="FILE", help="also write the plan to this file")
    plan.add_argument("--compare", nargs=2, metavar="FILE", help="show two such files side by side")
    plan.set_defaults(action=_plan)

    evaluate = verbs.add_parser("eval", help="evaluate a run's newest checkpoint, or any model")
    add_config_arguments(
        evaluate, "a run's directory or config; a config with only model and evaluation; or, with --data, a model"
    )
    evaluate.add_argument("--data", action="append", default=[], help="shards or a folder of them; may be repeated")
    evaluate.add_argument("--data-format", help="of --data; guessed from the names")
    evaluate.add_argument("--task", help="zeroshot_classification, or zeroshot_retrieval")
    evaluate.add_argument("--classnames", help="a file, or a standard data set such as imagenet1k")
    evaluate.add_argument("--templates", help="likewise")
    evaluate.add_argument(
        "--to",
        help="also write each result as JSON into this folder, as CLIP_benchmark does; or one, into a .json file",
    )
    add_process_arguments(evaluate)
    evaluate.set_defaults(action=_eval)

    export = verbs.add_parser("export", help="write a run's model as a directory for others to open, with a card")
    export.add_argument("run", help="the run's directory")
    export.add_argument("directory", help="where to; a new or empty directory")
    export.add_argument(
        "--to",
        choices=("clip-jax", "huggingface", "open_clip", "jax"),
        default="clip-jax",
        dest="format",
        help="the format: ours, which holds any architecture and load_pretrained opens; one that transformers or "
        "open_clip opens in PyTorch; or programs that jax alone runs",
    )
    export.add_argument(
        "--weights", choices=("ema", "raw"), help="moving averages or not (default: what the run's evaluations take)"
    )
    export.add_argument(
        "--push", metavar="OWNER/NAME", help="then upload it to this repository on the Hugging Face Hub"
    )
    export.add_argument("--private", action="store_true", help="a repository that --push makes is not public")
    export.set_defaults(action=_export)

    embed = verbs.add_parser("embed", help="embed a data set's pictures or captions; continues when run again")
    embed.add_argument("model", help="a run's directory, a model's directory, or a name on the Hugging Face Hub")
    embed.add_argument("--data", required=True, help="shards, a folder of them, or a folder of pictures")
    embed.add_argument("--data-format", help="of --data; guessed from the names")
    embed.add_argument("--to", required=True, help="the directory for the embeddings")
    embed.add_argument("--what", choices=("images", "texts", "both"), default="images", help="default: %(default)s")
    embed.add_argument("--format", choices=("parquet", "npy"), default="parquet", help="default: %(default)s")
    embed.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: %(default)s")
    embed.add_argument("--batch-size", type=int, default=256, help="samples at once (default: %(default)s)")
    embed.add_argument("--shard-size", type=int, default=65536, help="embeddings in a file (default: %(default)s)")
    embed.set_defaults(action=_embed)

    search = verbs.add_parser("search", help="find the pictures nearest to a sentence or a picture")
    search.add_argument("directory", help="that clip-train embed wrote")
    search.add_argument("query", help="a sentence, or the path of a picture")
    search.add_argument("--top", type=int, default=24, help="how many (default: %(default)s)")
    search.add_argument("--to", help="the page of thumbnails (default: search.html)")
    search.set_defaults(action=_search)

    report = verbs.add_parser("report", help="draw one run, or compare several, on one page; also while they train")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    report.add_argument("--to", help="the page (default: the run's own report.html; of several, ./report.html)")
    report.set_defaults(action=_report)

    schema = verbs.add_parser("schema", help="print the JSON schema of a config")
    schema.set_defaults(action=_schema)
    return parser


def _run(options: argparse.Namespace) -> int:
    config = _start(options)
    from clip_train.config_file import located
    from clip_train.run import run
    from clip_train.trace import Steps

    with located("--profile"):
        profile = Steps.parse(options.profile) if options.profile else None
    return run(config, dry_run=options.dry_run, profile=profile)


def _plan(options: argparse.Namespace) -> int:
    if options.topology:
        _pretend(options.topology)
    from clip_train.config import TrainConfig
    from clip_train.config_file import ConfigError, read_config
    from clip_train.plan_screen import compare, plan_verb

    if options.compare:
        return compare([Path(file) for file in options.compare])
    if not (options.config and options.topology):
        raise ConfigError("a plan is of a config and a topology: clip-train plan CONFIG --topology v5e:16x16")
    config = read_config(TrainConfig, config_path(options.config), options.overrides)
    return plan_verb(config, options.topology, fit=options.fit, to=Path(options.json) if options.json else None)


def _pretend(topology: str) -> None:
    """Before jax starts: it looks for no TPU where one is only compiled for, and makes as many processors as asked."""
    kind, _, number = topology.partition(":")
    if kind == "cpu" and number.isdigit():
        flags = os.environ.get("XLA_FLAGS", "")
        if "host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={number}".strip()
    if not kind.startswith("gpu"):
        os.environ["JAX_PLATFORMS"] = "cpu"
        # The compiler alone needs no TPU, no metadata of one, and no lock on it; it tells of each that it misses. Which
        # machine it is told of makes no difference to what it compiles for.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true", "TPU_MIN_LOG_LEVEL": "3"}
        os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}


def _eval(options: argparse.Namespace) -> int:
    to = Path(options.to) if options.to else None
    from clip_train.evaluate_model import asked_of, evaluate_model, trains

    if options.data or not trains(options.config):
        config = asked_of(
            options.config,
            data=options.data,
            overrides=options.overrides,
            task=options.task,
            data_format=options.data_format,
            classnames=options.classnames,
            templates=options.templates,
        )
        return evaluate_model(config, to=to)
    config = _start(options)
    from clip_train.evaluate_run import evaluate_run

    return evaluate_run(config, to=to)


def _embed(options: argparse.Namespace) -> int:
    from clip_train.retrieve import run_embed

    return run_embed(
        options.model,
        options.data,
        Path(options.to),
        data_format=options.data_format,
        what=options.what,
        format=options.format,
        dtype=options.dtype,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
    )


def _search(options: argparse.Namespace) -> int:
    from clip_train.retrieve import run_search

    to = Path(options.to) if options.to else None
    return run_search(Path(options.directory), options.query, top=options.top, to=to)


def _start(options: argparse.Namespace) -> TrainConfig:
    """Join the other processes, before anything else asks jax for devices, and read the config."""
    from clip_sharding import start_processes
    from clip_train.config import TrainConfig
    from clip_train.config_file import located, read_config
    from clip_train.processes import together

    with located("--coordinator, --process-id, --num-processes", (ValueError,)):
        start_processes(options.coordinator, options.process_id, options.num_processes)
    with together():
        return read_config(TrainConfig, config_path(options.config), options.overrides)


def _export(options: argparse.Namespace) -> int:
    from clip_train.export import export_run
    from clip_train.push import check_push, push

    to = Path(options.directory)
    if options.push is not None:
        check_push(options.push)
    model = export_run(options.run, to, options.format, weights=options.weights, repo=options.push)
    kind = {"ema": "moving averages", "raw": "parameters"}[model.weights]
    used = "as the run's evaluations use" if model.weights == model.evaluated else "which its evaluations do not use"
    print(f"Wrote {to}: {kind} of step {model.step:,}, {used}")
    if options.push is not None:
        print(f"Pushed to {push(to, options.push, private=options.private)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from clip_train.report import report

    print(f"Wrote {report(options.runs, Path(options.to) if options.to else None)}")
    return 0


def _schema(_: argparse.Namespace) -> int:
    from clip_train.config import TrainConfig
    from clip_train.config_file import schema

    print(json.dumps(schema(TrainConfig), indent=2))
    return 0


def _init(options: argparse.Namespace) -> int:
    from clip_train.starter import ask, write_starter

    write_starter(ask(options, interactive=sys.stdin.isatty()), Path(options.to))
    print(f"Wrote {options.to}. Look at it, then: clip-train run {options.to} --dry-run")
    return 0


if __name__ == "__main__":
    command()
