"""A plan in words and numbers: on the screen, as JSON, and two side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from clip_sharding import CHIPS, DoesNotFitError
from clip_sharding.roofline import LIMITS
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, config_to_json, located
from clip_train.output import write_json
from clip_train.plan import RunPlan, Trial, plan_run, search, topology_named
from clip_train.screen import make_console, show_facts, show_table

DOES_NOT_FIT = 3
"""The exit status of a plan that needs more memory than there is."""

_GIB = 2**30
_NOTHING = (
    "Nothing fits, not even a row on each device with everything computed again: take more or larger chips, or divide "
    "the parameters over more of them (mesh, sharding)."
)


def plan_verb(config: TrainConfig, topology: str, *, fit: bool = False, to: Path | None = None) -> int:
    """`clip-train plan CONFIG --topology NAME`.

    Returns:
        0, or 3 when the run does not fit as the config says.
    """
    console = make_console()
    if to is not None:
        with located("--json"):
            to.parent.mkdir(parents=True, exist_ok=True)
    where = topology_named(topology)
    refusals: list[DoesNotFitError] = []

    def told(trial: Trial) -> None:
        changed = ", ".join(f"{name} {value}" for name, value in _changes(config, trial.config).items())
        if trial.refusal is not None:
            refusals.append(trial.refusal)
        result = "fits" if trial.refusal is None else f"does not fit: {trial.refusal.needed / _GIB:.1f} GiB"
        console.print(f"  {changed}: {result}", markup=False)

    if fit:
        found = search(config, where, told)
    else:
        try:
            found = plan_run(config, where)
        except DoesNotFitError as error:
            console.print(f"This does not fit on {topology}: {error}.\nLooking for what does:", markup=False)
            other = search(config, where, told)
            console.print(f"It fits with {_settings(config, other)}" if other else _NOTHING, markup=False)
            if to is not None:
                write_json(to, _refused(topology, error, other and _changes(config, other.config)))
            return DOES_NOT_FIT
    if found is None:
        console.print(_NOTHING)
        if to is not None:
            write_json(to, _refused(topology, min(refusals, key=lambda refusal: refusal.needed), None))
        return DOES_NOT_FIT
    _show(console, found)
    if fit:
        console.print(f"It is the config with {_settings(config, found)}", markup=False)
    if to is not None:
        write_json(to, to_json(found))
    return 0


def to_json(found: RunPlan) -> dict[str, Any]:
    """All of a plan, numbers in bytes, FLOPs and seconds."""
    line, step = found.step.roofline, dataclasses.asdict(found.step)
    result = {
        "fits": True,
        **step,
        "hardware_flops": found.step.flops * found.step.num_devices,
        "mesh": found.mesh,
        "strategy": found.strategy,
        "global_batch_size": found.config.global_batch_size,
        "num_microbatches": found.num_microbatches,
        "num_steps": found.num_steps,
        "model_flops": found.model_flops,
        "images_per_second": found.images_per_second,
        "hours": found.hours,
        "chip_hours": found.chip_hours,
        "config": config_to_json(found.config),
    }
    if line is not None:
        result["roofline"] |= {"bound": line.bound, "limit": line.limit}
        result |= {"mfu": found.mfu(line.bound), "mfu_in_order": found.mfu(line.in_order)}
    return result


def compare(files: Sequence[Path]) -> int:
    """`clip-train plan --compare A B`: print two plans that `--json` wrote, side by side.

    Raises:
        ConfigError: a file holds no plan.
    """
    plans = []
    for file in files:
        with located(str(file)):
            plans.append(json.loads(file.read_text()))
        if not isinstance(plans[-1], dict) or "fits" not in plans[-1]:
            raise ConfigError(
                f"{file}: this is no plan; write one with clip-train plan CONFIG --topology NAME --json FILE"
            )
    first, second = (_flat(one) for one in plans)
    rows = []
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        if name.startswith("config.") and a == b:
            continue
        rows.append((name, _short(a), _short(b), _ratio(a, b)))
    show_table(make_console(), ("", *(file.name for file in files), "ratio"), rows)
    return 0


def _show(console: Console, found: RunPlan) -> None:
    step, config, line = found.step, found.config, found.step.roofline
    per_device = config.global_batch_size // found.num_microbatches // (found.mesh["data"] * found.mesh["fsdp"])
    axes = ", ".join(f"{name} {size}" for name, size in found.mesh.items())
    facts = [
        ("devices", f"{step.num_devices} on {step.num_chips} chips of {step.topology}, mesh {axes}"),
        ("parameters", f"{found.strategy}, {config.precision}, remat {config.remat}"),
        (
            "batch",
            f"{config.global_batch_size:,}, {per_device:,} on a device × {found.num_microbatches} microbatches",
        ),
        ("steps", f"{found.num_steps:,}"),
    ]
    show_facts(console, "clip-train plan", facts)
    available = step.available
    memory = [
        (name, f"{size / _GIB:.3f}", f"{100 * size / available:.1f} %" if available else "")
        for name, size in step.memory.items()
    ]
    show_table(console, ("memory of a device", "GiB", f"of {available / _GIB:.1f} GiB" if available else ""), memory)
    hardware = step.flops * step.num_devices
    work = [
        ("model FLOPs", f"{found.model_flops / 1e12:,.2f} T", "all devices"),
        ("hardware FLOPs", f"{hardware / 1e12:,.2f} T", f"{hardware / found.model_flops:.3f} of the model's"),
        ("HBM bytes", f"{step.bytes / 1e9:,.2f} GB", "of a device"),
        *((f"{kind} bytes", f"{sent / 1e9:,.3f} GB", "sent by a device") for kind, sent in step.sent.items()),
        *(
            (f"{kind} bytes", f"{sent / 1e9:,.3f} GB", "… to other slices")
            for kind, sent in step.sent_between_slices.items()
        ),
    ]
    show_table(console, ("in a step", "", ""), work)
    for note in _notes(found):
        console.print(f"Note: {note}", markup=False)
    if line is None:
        console.print(f"Not all the peaks that it needs are published for {step.topology}, so that no time is told.")
        return
    chip = CHIPS[step.chip or ""]
    rows = [
        (LIMITS[name], f"{1e3 * getattr(line, name):,.1f} ms", _share(found, getattr(line, name)))
        for name in LIMITS
        if name != "slices" or step.sent_between_slices
    ]
    rows.append(("one after the other", f"{1e3 * line.in_order:,.1f} ms", _share(found, line.in_order)))
    show_table(console, (f"at the peaks of {chip.name}", "a step", "MFU"), rows)
    images = found.images_per_second or 0.0
    facts = [
        ("limited by", LIMITS[line.limit]),
        ("at most", f"{images:,.0f} images/s, MFU {_share(found, line.bound)}"),
        ("the run", f"at least {found.hours:,.2f} hours, {found.chip_hours:,.0f} chip-hours"),
        ("peaks from", chip.source),
    ]
    show_facts(console, "Bound", facts)


def _notes(found: RunPlan) -> list[str]:
    step, notes = found.step, []
    if step.uncounted_loops:
        notes.append(f"{step.uncounted_loops} loops of unknown length are counted as one turn.")
    if step.library_calls:
        notes.append(
            f"hardware FLOPs are without those of {step.library_calls} kernels that the compiler does not tell; the "
            "time of arithmetic is at least that of the model FLOPs."
        )
    if found.config.remat == "offload":
        notes.append("what remat offload sends to the host's memory and back is not counted, nor the time of it.")
    if step.flops_check is not None and not step.library_calls and not 0.9 < step.flops_check <= 1.001:
        notes.append(f"hardware FLOPs, loops once, are {step.flops_check:.3f} of the compiler's own count of them.")
    return notes


def _share(found: RunPlan, seconds: float) -> str:
    share = found.mfu(seconds) if seconds else None
    return "" if share is None else f"{100 * share:.1f} %"


def _changes(asked: TrainConfig, config: TrainConfig) -> dict[str, Any]:
    """What a search put in the place of fields of the config that it was given; None: the field is to be left out."""
    changed = {"remat": config.remat, "microbatch_size": config.microbatch_size or config.global_batch_size}
    if config.sharding != asked.sharding:
        changed["sharding"] = config.sharding
        if asked.mesh is not None:
            changed["mesh"] = None
    return changed


def _settings(asked: TrainConfig, found: RunPlan) -> str:
    return " ".join(
        f"--set {name}={'null' if value is None else value}" for name, value in _changes(asked, found.config).items()
    )


def _refused(topology: str, error: DoesNotFitError, changes: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "fits": False,
        "topology": topology,
        "needed": error.needed,
        "available": error.available,
        "fits_with": changes,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _ratio(a: Any, b: Any) -> str:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return f"{b / a:.3f}" if numbers and a else ""


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "–" if value is None else str(value)
    show: Callable[[float], str] = "{:,.4g}".format
    return show(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else json.dumps(value)
