"""A training run from its config to its report, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console

from clip_data import Pipeline
from clip_models import init
from clip_sharding import exchange
from clip_train.batches import GlobalBatches
from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_changes import check_alike, differences
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.continuation import check_length, claim, tell_changes, undone
from clip_train.evaluate import Encoders, EvaluationConfig, Result, evaluate
from clip_train.faults import explained_faults, explained_writes
from clip_train.jsonl import Jsonl, iterate_jsonl
from clip_train.lease import InUseError, Lease
from clip_train.log import MetricsLog
from clip_train.loop import Event, fit
from clip_train.output import Output, write_json
from clip_train.processes import is_first, together
from clip_train.report import SHOWN, read_run, write_report, write_shown
from clip_train.screen import Say, duration, make_console, say_of_this_process, show_facts, warn
from clip_train.setup import Setup, prepare, resolve
from clip_train.sinks import count_skipped, make_gauges, make_sinks, make_watch, skipped_here
from clip_train.stall import watched
from clip_train.state import TrainState, create_state, state_from_params
from clip_train.stop import Interrupted, Stop
from clip_train.summary import describe, result_to_json, show_metrics, show_placements
from clip_train.trace import Steps, Trace


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
            finished = is_first() and claim(output, resolved) and output.is_finished(resolved)
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
    say, say_here = functools.partial(warn, console), say_of_this_process(console)
    with explained_writes(), contextlib.ExitStack() as resources:
        pipeline, lease = resources.enter_context(setup.pipeline), None
        with together(), located("output_dir"):
            if is_first():
                lease = resources.enter_context(Lease(output.address, say))
                output.begin(resolved)
        before = exchange(output.before())[0]
        with together(), located("output_dir"):
            output.check_shared()
        resources.enter_context(published(output, lease, say))
        checkpoints = resources.enter_context(Checkpoints(output.checkpoints, keep=config.checkpoint.keep, say=say))
        check_length(setup, checkpoints)
        with explained_faults("state"):
            state, first_step = start(setup, checkpoints, pipeline, console)
        if first_step:
            tell_changes(before, resolved, setup, say)
        if profile is not None and profile.last <= first_step:
            # The same command continues a run, whatever it asked for at first.
            say(f"--profile: steps {profile.first} to {profile.last} are done: this start traces none.")
        with together(), located("output_dir"):
            if is_first():
                if first_step == 0 and differences(before, resolved):
                    output.forget_wandb()
                output.write_config(resolved)
        watch = make_watch(setup, output, console, first_step)
        with together():
            sinks = make_sinks(setup, output, console, first_step, resolved)
        log = MetricsLog(
            [*sinks, watch],
            global_batch_size=config.global_batch_size,
            first_step=first_step,
            gauges=make_gauges(setup),
            skipped=functools.partial(skipped_here, setup),
        )
        resources.callback(log.close)
        encoders, stop = Encoders(setup.model, setup.mesh), Stop()

        def measure(evaluation: EvaluationConfig, params: Any) -> Result:
            at = f"evaluation {evaluation.name}"
            with located(at), explained_faults("evaluation", at=at), stop.breaks_off():
                result = evaluate(
                    evaluation,
                    encoders,
                    params,
                    setup.data,
                    setup.tokenizer,
                    through=lambda batches: watched(stop.between(batches), say_here, share=None),
                )
            log.add({f"{evaluation.name}/{name}": value for name, value in result.metrics.items()})
            return result

        for evaluation in undone(setup, first_step, next((sink for sink in sinks if isinstance(sink, Jsonl)), None)):
            measure(evaluation, setup.evaluated(state))
        step = setup.step()
        if profile is not None:
            step = resources.enter_context(Trace(output.profile, profile, first_step=first_step)).of(step)
        batches = GlobalBatches(
            pipeline,
            setup.mesh,
            teacher=setup.teacher(),
            first_step=first_step,
            remember=watch.remember,
            repeat_first=config.data.repeat_first_batch,
        )

        def save(step: int, state: TrainState) -> None:
            if lease is not None:
                with located("output_dir"):
                    lease.check()
            # A crash after the checkpoint must find the rows of all its steps.
            log.flush()
            checkpoints.save(step, state, batches.cursor(step), before=output.changes())

        events = [
            Event(_unless_last(setup, measure, e), every_steps=setup.steps(e.every))
            for e in config.evaluation
            if e.every
        ]
        minutes = config.checkpoint.every_minutes
        events.append(
            Event(save, every_steps=config.checkpoint.every_steps, every_seconds=60 * minutes if minutes else None)
        )
        resources.enter_context(stop)
        with explained_faults():
            state, done = fit(
                state,
                step,
                watched(batches, say_here),
                num_steps=setup.num_steps,
                first_step=first_step,
                log=log,
                events=events,
                stop=stop,
            )
        saving = time.monotonic()
        with explained_faults(), located("output_dir"):
            if done > first_step:
                save(done, state)
            checkpoints.wait()
        saving = time.monotonic() - saving
        results: list[Result] = []
        if done == setup.num_steps:
            with contextlib.suppress(Interrupted):
                results += [measure(evaluation, setup.evaluated(state)) for evaluation in config.evaluation]
        if stop.signal is not None and (done < setup.num_steps or len(results) < len(config.evaluation)):
            log.close()
            how = f"saved in {saving:.1f} s" if done > first_step else "nothing was left to save"
            console.print(
                f"\nStopped by {stop.signal.name} after step {done}; {how}. The same command continues from there."
            )
            return 128 + stop.signal

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
    branch = setup.config.branch
    if checkpoints.latest_step() is not None:
        with located("output_dir"):
            restored = checkpoints.restore(setup.abstract)
        if not setup.config.data.repeat_first_batch:
            with located("data.train"):
                pipeline.seek(restored.cursor)
        if restored.torn:
            torn = ", ".join(map(str, restored.torn))
            warn(console, f"The checkpoint of step {torn} is torn: it cannot be read, and was put aside.")
        console.print(f"Continuing from the checkpoint of step {restored.step}.")
        return restored.state, restored.step
    if branch is not None:
        with located("branch"), Checkpoints(Output.checkpoints_of(branch.run), read_only=True) as theirs:
            check_length(setup, theirs)
            restored = theirs.restore(setup.abstract, step=branch.step)
            pipeline.seek(restored.cursor)
        console.print(f"Beginning at the checkpoint of step {restored.step} of {branch.run}.")
        return restored.state, restored.step
    if setup.origin.load is not None:
        placements = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract.params)
        return state_from_params(setup.origin.load(placements), setup.tx, setup.abstract), 0
    make = functools.partial(init, setup.model, jax.random.key(setup.config.seed))
    return create_state(make, setup.tx, setup.abstract), 0


@contextlib.contextmanager
def published(output: Output, lease: Lease | None, say: Say) -> Iterator[None]:
    """At the end, whatever ends it, send what the run wrote to its bucket, if it is in one and still this start's."""
    try:
        yield
    finally:
        try:
            if lease is not None:
                lease.check()
            output.publish()
        except (OSError, InUseError) as error:
            say(f"{error}. The next start writes it again.")


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
    trained, final_loss = 0.0, float("nan")
    for row in iterate_jsonl(output.metrics):
        if "loss" in row:
            trained, final_loss = trained + row["seconds"], row["loss"]
    facts = [*facts, ("training time", duration(trained))]
    write_shown(output.root / SHOWN, facts, results)
    write_report(output.report, [read_run(output.root, output.title)])
    write_json(
        output.results,
        {
            "steps": setup.num_steps,
            "samples": setup.num_steps * setup.config.global_batch_size,
            "final_loss": final_loss,
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
