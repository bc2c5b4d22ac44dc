"""A run's step compiled for devices that need not be here: whether it fits, how fast it can be, what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from clip_models.config import Remat
from clip_sharding import (
    BATCH_AXES,
    CHIPS,
    DoesNotFitError,
    Plan,
    Topology,
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
        step: what an update takes of each device.
        model_flops: of an update on all devices, in the matrix products that the model and its loss ask for, forward
            and backward, none of them twice.
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
    """A way to run that was compiled.

    Attributes:
        remat: as in the config.
        microbatch_size: likewise.
        plan: what it takes; None if it does not fit.
        refusal: why not.
    """

    remat: Remat
    microbatch_size: int
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
    step = plan(
        program.step(),
        program.abstract,
        program.batch(),
        topology=topology,
        groups={
            "parameters": program.abstract.params,
            "optimizer": program.abstract.opt_state,
            "batch": program.batch(),
        },
    )
    return RunPlan(
        config=program.config,
        step=step,
        model_flops=program.model_flops(),
        num_steps=program.num_steps,
        num_microbatches=program.num_microbatches,
        mesh=dict(program.mesh.shape),
        strategy=program.strategy,
    )


def search(config: TrainConfig, topology: Topology, told: Callable[[Trial], None]) -> RunPlan | None:
    """Find the largest microbatch that fits, and of the remat policies that let it the one that repeats least.

    A whole batch with any remat costs less than several microbatches, each of which is encoded twice.

    Args:
        config: of the run; its `remat` and `microbatch_size` are what is searched.
        topology: from `clip_sharding.find_topology`.
        told: hears of each trial.

    Returns:
        The plan of what was found; None: not even one row on each device fits.
    """
    if topology.memory is None:
        raise ConfigError(f"--fit: the memory of {topology.name} is not known, so that everything fits there")
    for micro in _microbatches(config, topology):
        for remat in _REMATS:
            candidate = dataclasses.replace(config, remat=remat, microbatch_size=micro)
            try:
                found, refusal = plan_run(candidate, topology), None
            except DoesNotFitError as error:
                found, refusal = None, error
            told(Trial(remat, micro, found, refusal))
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
