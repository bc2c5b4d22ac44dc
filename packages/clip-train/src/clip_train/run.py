"""A training run from its config to its report, to be read from top to bottom."""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from clip_data import Batch, Pipeline
from clip_models import init
from clip_sharding import exchange, gather_items, to_global
from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.evaluate import Encoders, EvaluationConfig, Result, evaluate
from clip_train.faults import explained_faults, explained_writes
from clip_train.gauges import Gauges, peak_flops
from clip_train.inputs import image_arrays, stored_arrays, text_config
from clip_train.log import Jsonl, MetricsLog, Sink, TensorBoard, Wandb, read_jsonl
from clip_train.loop import Event, Stop, fit
from clip_train.output import Output, check_alike, write_json
from clip_train.processes import is_first, together
from clip_train.report import SHOWN, read_run, write_report, write_shown
from clip_train.screen import Progressing, duration, make_console, show_facts, warn
from clip_train.setup import Setup, prepare, resolve
from clip_train.state import TrainState, create_state, state_from_params
from clip_train.summary import describe, result_to_json, show_metrics, show_placements
from clip_train.teacher import TaughtBatches
from clip_train.trace import Steps, Trace
from clip_train.watch import Watch, absurd_first_loss, chance_loss, watched


def run(
    config: TrainConfig,
    *,
    dry_run: bool = False,
    profile: Steps | None = None,
    change: Callable[[Setup], Setup] = lambda setup: setup,
) -> int:
    """Train, evaluate and report; continue where an earlier start of the same run ended.

    Args:
        config: of the run.
        dry_run: check everything and show what would happen, then stop: nothing is written.
        profile: steps to trace, into the run's `profile/`.
        change: puts something else in the place of parts of what is ready to start, such as another optimizer.

    Returns:
        The exit status: 0 when the run is finished, 128 plus the signal's number when one stopped it.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    with together():
        config, origin = resolve(config)
        resolved = config_to_json(config)
        with located("output_dir"):
            output = Output(config.output_dir)
    with output:
        with together(), located("output_dir"):
            finished = is_first() and output.claim(resolved) and output.is_finished(resolved)
        check_alike(resolved)
        if exchange(finished)[0]:
            console.print(
                f"This run is finished: {output.name(output.results)}, {output.name(output.report)}. To train on, "
                "raise train_samples; to train again, set another output_dir."
            )
            return 0

        with together():
            setup = change(prepare(config, origin))
        facts = describe(setup)
        show_facts(console, "clip-train run", facts)
        for warning in setup.warnings:
            warn(console, warning)
        if profile is not None and profile.first > setup.num_steps:
            raise ConfigError(f"--profile: the run has {setup.num_steps} steps; got {profile.first}:{profile.last}")
        if dry_run:
            show_placements(console, setup)
            setup.pipeline.close()
            return 0
        return train(setup, output, resolved, facts, console, profile=profile)


def train(
    setup: Setup,
    output: Output,
    resolved: dict[str, Any],
    facts: list[tuple[str, str]],
    console: Console,
    *,
    profile: Steps | None = None,
) -> int:
    """The run itself, once everything about it is known to be right.

    Args:
        setup: what is ready to start.
        output: the run's files, claimed.
        resolved: the config, every default filled in.
        facts: about the run, for its report.
        console: to tell what happens.
        profile: steps to trace.

    Returns:
        The exit status.
    """
    config = setup.config
    started = time.monotonic()
    with together(), located("output_dir"):
        if is_first():
            output.write_config(resolved)
    with together(), located("output_dir"):
        output.check_shared()
    with explained_writes(), contextlib.ExitStack() as resources:
        pipeline = resources.enter_context(setup.pipeline)
        say = functools.partial(warn, console)
        resources.enter_context(published(output, say))
        checkpoints = resources.enter_context(Checkpoints(output.checkpoints, keep=config.checkpoint.keep, say=say))
        state, first_step = start(setup, checkpoints, pipeline, console)
        watch = make_watch(setup, output, console)
        with together():
            sinks = make_sinks(setup, output, console, first_step, resolved)
        log = MetricsLog(
            [*sinks, watch],
            global_batch_size=config.global_batch_size,
            first_step=first_step,
            gauges=make_gauges(setup),
        )
        resources.callback(log.close)
        encoders = Encoders(setup.model, setup.mesh)

        def measure(evaluation: EvaluationConfig, params: Any) -> Result:
            with located(f"evaluation {evaluation.name}"):
                result = evaluate(evaluation, encoders, params, setup.data, setup.tokenizer)
            log.add({f"{evaluation.name}/{name}": value for name, value in result.metrics.items()})
            return result

        def save(step: int, state: TrainState) -> None:
            # A crash after the checkpoint must find the rows of all its steps.
            log.flush()
            checkpoints.save(step, state, pipeline.cursor(), before=output.changes())

        if first_step == 0:
            for evaluation in config.evaluation:
                if evaluation.every:
                    measure(evaluation, setup.evaluated(state))
        step = setup.step()
        if profile is not None:
            step = resources.enter_context(Trace(output.profile, profile, first_step=first_step)).of(step)
        batches = global_batches(
            pipeline, setup.mesh, teacher=setup.teacher(), first_step=first_step, remember=watch.remember
        )
        events = [
            Event(_unless_last(setup, measure, e), every_steps=setup.steps(e.every))
            for e in config.evaluation
            if e.every
        ]
        minutes = config.checkpoint.every_minutes
        events.append(
            Event(save, every_steps=config.checkpoint.every_steps, every_seconds=60 * minutes if minutes else None)
        )
        with Stop() as stop, explained_faults():
            state, done = fit(
                state,
                step,
                watched(batches, say),
                num_steps=setup.num_steps,
                first_step=first_step,
                log=log,
                events=events,
                stop=stop,
            )
        with explained_faults(), located("output_dir"):
            save(done, state)
            checkpoints.wait()
        if stop.signal is not None and done < setup.num_steps:
            log.close()
            console.print(
                f"\nStopped by {stop.signal.name} after step {done}, and saved. The same command continues from there."
            )
            return 128 + stop.signal
        results = [measure(evaluation, setup.evaluated(state)) for evaluation in config.evaluation]

    skipped = count_skipped(setup)
    if is_first():
        finish(setup, output, results, facts, skipped, seconds=time.monotonic() - started)
    console.print()
    show_metrics(console, results)
    paths = [("report", output.report), ("results", output.results), ("metrics", output.metrics)]
    facts = [(name, output.name(path)) for name, path in paths]
    show_facts(console, "Finished", [*facts, ("checkpoints", output.checkpoints)])
    return 0


def start(setup: Setup, checkpoints: Checkpoints, pipeline: Pipeline, console: Console) -> tuple[TrainState, int]:
    """The state to begin with: the newest checkpoint's, or a first one; the pipeline is moved to match."""
    if checkpoints.latest_step() is not None:
        with located("output_dir"):
            restored = checkpoints.restore(setup.abstract)
        with located("data.train"):
            pipeline.seek(restored.cursor)
        if restored.torn:
            torn = ", ".join(map(str, restored.torn))
            warn(console, f"The checkpoint of step {torn} is torn: it cannot be read, and was put aside.")
        console.print(f"Continuing from the checkpoint of step {restored.step}.")
        return restored.state, restored.step
    if setup.origin.load is not None:
        placements = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract.params)
        return state_from_params(setup.origin.load(placements), setup.tx, setup.abstract), 0
    make = functools.partial(init, setup.model, jax.random.key(setup.config.seed))
    return create_state(make, setup.tx, setup.abstract), 0


def global_batches(
    pipeline: Pipeline,
    mesh: Mesh,
    *,
    teacher: TaughtBatches | None = None,
    first_step: int = 0,
    remember: Callable[[int, Sequence[str]], None] | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """What the step reads of each batch, on the mesh, with a teacher's embeddings where there is one.

    Args:
        pipeline: at the position of `first_step`.
        mesh: the devices.
        teacher: to learn from.
        first_step: updates already made.
        remember: told of each step and the keys of its batch.
    """
    for step, batch in enumerate(pipeline, start=first_step + 1):
        if remember is not None:
            remember(step, batch.key)
        arrays = to_global(step_inputs(batch), mesh)
        yield arrays if teacher is None else teacher(arrays)


def step_inputs(batch: Batch) -> dict[str, Any]:
    """What objective and teacher read: the pictures' arrays, `input_ids` and `attention_mask` int32, stored vectors."""
    texts = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return {**image_arrays(batch), **texts, **stored_arrays(batch)}


def make_sinks(setup: Setup, output: Output, console: Console, first_step: int, resolved: dict[str, Any]) -> list[Sink]:
    """The places that the config sends metrics to; of several processes the first sends them."""
    if not is_first():
        return []
    log = setup.config.log
    # `metrics.jsonl` feeds the report: it is written whatever the config says.
    sinks: list[Sink] = [Jsonl(output.metrics, first_step=first_step)]
    try:
        if "tensorboard" in log.to:
            sinks.append(TensorBoard(output.root / "tensorboard", first_step=first_step))
        if "wandb" in log.to:
            sinks.append(Wandb(output.root, name=output.title, project=log.project, config=resolved))
    except ImportError as error:
        raise ConfigError(
            f"log.to: {error.name} is not installed; install clip-train[tensorboard] or clip-train[wandb]"
        ) from error
    if "console" in log.to:
        line_every = setup.steps(log.every)
        sinks.append(Progressing(console, num_steps=setup.num_steps, first_step=first_step, line_every=line_every))
    return sinks


def make_gauges(setup: Setup) -> Gauges:
    """What is read of the machine beside the metrics."""
    peak = peak_flops(setup.mesh.devices.flat[0].device_kind, setup.mesh.size)
    return Gauges(
        num_devices=setup.mesh.size,
        flops_per_image=setup.model_flops() / setup.config.global_batch_size if peak else 0.0,
        peak_flops=peak,
        skipped=lambda: {**setup.pipeline.faults, **setup.pipeline.skipped},
    )


def make_watch(setup: Setup, output: Output, console: Console) -> Watch:
    """What looks at the metrics for what somebody should hear."""
    config, model = setup.config, setup.model
    chance = chance_loss(
        config.loss.kind,
        batch_size=config.global_batch_size,
        vocab_size=text_config(model).vocab_size,
        bias=model.logit_bias_init or 0.0,
    )
    is_plain = config.loss.distillation is None and config.loss.caption_weight == 0
    return Watch(
        config.guard,
        output.root / "bad_steps.jsonl",
        first_loss=functools.partial(
            absurd_first_loss,
            chance=chance * config.loss.contrastive_weight,
            pretrained=setup.origin.load is not None and not config.model.reinitialize,
        )
        if is_plain
        else lambda _: None,
        say=functools.partial(warn, console),
        gather=functools.partial(gather_items, mesh=setup.mesh),
    )


@contextlib.contextmanager
def published(output: Output, say: Callable[[str], None]) -> Iterator[None]:
    """At the end, whatever ends it, send what the run wrote to its bucket, if it is in one."""
    try:
        yield
    finally:
        try:
            output.publish()
        except OSError as error:
            say(f"{error}. The next start writes it again.")


def count_skipped(setup: Setup) -> dict[str, int]:
    """The samples of all processes that were not used, by reason."""
    mine = [*setup.pipeline.faults.items(), *setup.pipeline.skipped.items()]
    counts: collections.Counter[str] = collections.Counter()
    for reason, count in gather_items(mine, setup.mesh):
        counts[reason] += count
    return dict(counts)


def finish(
    setup: Setup,
    output: Output,
    results: list[Result],
    facts: list[tuple[str, str]],
    skipped: dict[str, int],
    *,
    seconds: float,
) -> None:
    """Write the report, then `results.json`, whose presence says that the run is finished."""
    rows = [row for row in read_jsonl(output.metrics) if "loss" in row]
    trained = sum(row["seconds"] for row in rows)
    facts = [*facts, ("training time", duration(trained))]
    write_shown(output.root / SHOWN, facts, results)
    write_report(output.report, [read_run(output.root, output.title)])
    write_json(
        output.results,
        {
            "steps": setup.num_steps,
            "samples": setup.num_steps * setup.config.global_batch_size,
            "final_loss": rows[-1]["loss"],
            "seconds_training": trained,
            "seconds_last_start": seconds,
            "skipped_samples": skipped,
            "evaluation": [result_to_json(result, setup) for result in results],
        },
    )
    with located("output_dir"):
        output.publish()


def _unless_last(
    setup: Setup, measure: Callable[[EvaluationConfig, Any], Result], evaluation: EvaluationConfig
) -> Callable[[int, TrainState], None]:
    # The end has its own evaluation.
    def action(step: int, state: TrainState) -> None:
        if step < setup.num_steps:
            measure(evaluation, setup.evaluated(state))

    return action
