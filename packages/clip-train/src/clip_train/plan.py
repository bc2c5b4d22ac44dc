"""A run's step compiled for devices that need not be here: whether it fits, how fast it can be, what it costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from clip_models.config import Remat
from clip_sharding import (
    BATCH_AXES,
    CHIPS,
    DoesNotFitError,
    Plan,
    Roofline,
    Topology,
    bytes_per_device,
    find_topology,
    plan,
)
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, located
from clip_train.program import Program, make_program, place
from clip_train.setup import resolve

# From what computes nothing again to what keeps least; the host's memory, which a plan does not see, is left out.
_REMATS: tuple[Remat, ...] = ("none", "minimal", "proj", "full")


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run takes.

    Attributes:
        config: the resolved config.
        step: what an update takes of each device, with the teacher's embeddings of its batch where there is a teacher.
        model_flops: of an update on all devices, in the matrix products that the model and its loss ask for, forward
            and backward, none of them twice, and none of a teacher's.
        num_steps: updates in the run.
        num_microbatches: in an update.
        mesh: devices along each axis.
        strategy: how parameters are divided.
    """

    config: TrainConfig
    step: Plan
    model_flops: float
    num_steps: int
    num_microbatches: int
    mesh: dict[str, int]
    strategy: str

    @property
    def images_per_second(self) -> float | None:
        """At most, with everything at its published peak; None without published peaks."""
        return None if self.step.roofline is None else self.config.global_batch_size / self.step.roofline.bound

    @property
    def hours(self) -> float | None:
        """Of the whole run's updates, at least."""
        return None if self.step.roofline is None else self.num_steps * self.step.roofline.bound / 3600

    @property
    def chip_hours(self) -> float | None:
        """Likewise, over all chips."""
        return None if self.hours is None else self.hours * self.step.num_chips

    def mfu(self, seconds: float) -> float | None:
        """The model's arithmetic as a share of what the chips could do in an update of so many seconds."""
        if self.step.chip is None:
            return None
        return self.model_flops / (seconds * self.step.num_chips * CHIPS[self.step.chip].flops)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A way to run that was tried.

    Attributes:
        config: the run's, with what was changed.
        plan: what it takes; None if it does not fit.
        refusal: why not.
    """

    config: TrainConfig
    plan: RunPlan | None
    refusal: DoesNotFitError | None


def plan_run(config: TrainConfig, topology: Topology) -> RunPlan:
    """Compile the update that a run would make on a topology; no data is opened, no weight is read or made.

    Args:
        config: of the run.
        topology: from `clip_sharding.find_topology`.

    Raises:
        ConfigError: the config asks for what cannot be.
        DoesNotFitError: it needs more memory than the devices have.
    """
    program = _program(config, topology)
    state, batch = program.abstract, program.batch()
    groups = {"parameters": state.params, "optimizer": state.opt_state, "averages": state.ema, "batch": batch}
    step = plan(
        program.step(),
        state,
        batch,
        topology=topology,
        groups={name: tree for name, tree in groups.items() if tree is not None},
    )
    model_flops = program.model_flops()
    step = _with_all_arithmetic(step, model_flops)
    if (found := program.teacher_program()) is not None:
        embed, params = found
        taught = {name: batch[name] for name in ("attention_mask", "image", "input_ids")}
        teacher = plan(embed, params, taught, topology=topology, groups={"teacher": params})
        step = _with_teacher(step, teacher, bytes_per_device(state))
    return RunPlan(
        config=program.config,
        step=step,
        model_flops=model_flops,
        num_steps=program.num_steps,
        num_microbatches=program.num_microbatches,
        mesh=dict(program.mesh.shape),
        strategy=program.strategy,
    )


def _with_all_arithmetic(step: Plan, model_flops: float) -> Plan:
    """With the time of arithmetic that kernels do and do not tell: at least what is lacking of the model's."""
    lacking = model_flops / step.num_devices - step.flops
    if step.roofline is None or step.chip is None or not step.library_calls or lacking <= 0:
        return step
    chip, line = CHIPS[step.chip], step.roofline
    seconds = lacking / chip.flops * chip.devices
    line = dataclasses.replace(line, compute=line.compute + seconds, in_order=line.in_order + seconds)
    return dataclasses.replace(step, roofline=line)


def _with_teacher(step: Plan, teacher: Plan, state_bytes: int) -> Plan:
    """An update that a teacher's program goes before: each stays in memory while the other runs.

    Raises:
        DoesNotFitError: together they need more than the devices have.
    """
    weights = teacher.memory["teacher"]
    peak = max(step.memory["peak"] + weights, teacher.memory["peak"] + state_bytes)
    if step.available is not None and peak > step.available:
        raise DoesNotFitError(peak, step.available)
    passing = {name: max(step.memory[name], teacher.memory[name]) for name in ("activations", "temporaries")}
    kept = {name: size for name, size in step.memory.items() if name not in (*passing, "peak")}
    line = step.roofline
    if line is not None and teacher.roofline is not None:
        names = [field.name for field in dataclasses.fields(line)]
        line = Roofline(**{name: getattr(line, name) + getattr(teacher.roofline, name) for name in names})
    return dataclasses.replace(
        step,
        memory={**kept, "teacher": weights, **passing, "peak": peak},
        flops=step.flops + teacher.flops,
        bytes=step.bytes + teacher.bytes,
        sent={kind: step.sent.get(kind, 0) + teacher.sent.get(kind, 0) for kind in {**step.sent, **teacher.sent}},
        uncounted_loops=step.uncounted_loops + teacher.uncounted_loops,
        library_calls=step.library_calls + teacher.library_calls,
        roofline=line,
    )


def search(config: TrainConfig, topology: Topology, told: Callable[[Trial], None]) -> RunPlan | None:
    """Find the largest microbatch that fits, and of the remat policies that let it the one that repeats least.

    A whole batch with any remat costs less than several microbatches, each of which is encoded twice. Parameters that
    are whole on each device are divided by `fsdp` where nothing fits so.

    Args:
        config: of the run; its `remat`, `microbatch_size` and, last, `sharding` are what is searched.
        topology: from `clip_sharding.find_topology`.
        told: hears of each trial.

    Returns:
        The plan of what was found; None: not even one row on each device fits, with everything computed again and
        the parameters divided.
    """
    if topology.memory is None:
        raise ConfigError(f"--fit: the memory of {topology.name} is not known, so that everything fits there")
    candidates = [config]
    if _program(config, topology).strategy == "replicated" and len(topology.devices) > 1:
        candidates.append(dataclasses.replace(config, sharding="fsdp", mesh=None))
    for divided in candidates:
        state = bytes_per_device(_program(divided, topology).abstract)
        if state > topology.memory:
            told(Trial(divided, None, DoesNotFitError(state, topology.memory)))
            continue
        for micro, remat in itertools.product(_microbatches(divided, topology), _REMATS):
            candidate = dataclasses.replace(divided, remat=remat, microbatch_size=micro)
            try:
                found, refusal = plan_run(candidate, topology), None
            except DoesNotFitError as error:
                found, refusal = None, error
            told(Trial(candidate, found, refusal))
            if found is not None:
                return found
    return None


def _program(config: TrainConfig, topology: Topology) -> Program:
    resolved, origin = resolve(config, platform=topology.platform)
    where = place(resolved, origin.config, topology.devices, memory=topology.memory)
    with located("--topology"):
        return make_program(resolved, origin, where, samples_per_epoch=None)


def _microbatches(config: TrainConfig, topology: Topology) -> Iterator[int]:
    """Parts of the global batch that the devices divide, halved from the whole on."""
    size = config.global_batch_size
    resolved, origin = resolve(dataclasses.replace(config, microbatch_size=size), platform=topology.platform)
    mesh = place(resolved, origin.config, topology.devices, memory=topology.memory).mesh
    num_parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    while size and size % num_parts == 0:
        yield size
        size = size // 2 if size % 2 == 0 else 0


def topology_named(name: str) -> Topology:
    """The devices that `--topology` names.

    Raises:
        ConfigError: there are none of that name, or the compiler for them is not installed.
    """
    with located("--topology"):
        return find_topology(name)
