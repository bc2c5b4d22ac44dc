"""Starting one of the processes that train together, wherever it was started: before anything asks jax for devices."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping

import jax

HEARTBEAT_SECONDS = 60
"""After so long without a sign of life a process counts as dead, and jax ends the others and says which it was."""

_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
# Of Open MPI 5 and later, as its launcher names the job: the machine where mpirun runs, and its number there.
_MPIRUN = re.compile(r"[^-]+-(?P<host>.+)-(?P<pid>\d+)@\d+")


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a launcher tells the process that it started.

    Attributes:
        index: of the process, from 0.
        count: of all that it started together.
        gpus: of the machine, that the process takes; empty: all of them, as no other process is there.
    """

    index: int
    count: int
    gpus: tuple[int, ...]


def start_processes(
    coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None
) -> None:
    """Join the processes of this run; on a machine by itself, do nothing.

    With no argument, the surroundings tell: jax's own `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, and what these leave open Open MPI (`mpirun`, also inside a Slurm allocation), Slurm (a job step
    started by `srun`), Cloud TPU and GKE. Call it once, before anything creates an array or asks for devices. Where
    Slurm or Open MPI started several processes on a machine with GPUs, each takes the one GPU of its rank there;
    otherwise a process takes all devices of its machine.

    Args:
        coordinator: `host:port` of process 0; the port is any free one.
        process_id: of this process, from 0.
        num_processes: of the run.

    Raises:
        ValueError: some of the three are given and nobody tells the others, they are out of range, or Open MPI does not
            tell where it was started.
        RuntimeError: jax has devices already, or the other processes did not come.
    """
    told = (coordinator, process_id, num_processes)
    task = _task(os.environ)
    may_ask = False
    if told == (None, None, None):
        told = _completed(_from_environment(os.environ), task, os.environ)
        # What is open then jax finds by itself: where process 0 is under Slurm and Open MPI 4, and all on Cloud TPUs.
        may_ask = _on_cloud_tpus(os.environ) or (task is not None and told[1] is not None)
        if told == (None, None, None) and not may_ask:
            return
    _join(*told, task, may_ask=may_ask)


def _join(
    coordinator: str | None, process_id: int | None, num_processes: int | None, task: _Task | None, *, may_ask: bool
) -> None:
    if not may_ask and (coordinator is None or process_id is None or num_processes is None):
        raise ValueError(
            f"a process is started with all of coordinator, process_id and num_processes (or {', '.join(_JAX)}), or "
            f"with none where the surroundings tell; got {coordinator!r}, {process_id} and {num_processes}"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"coordinator is the host:port of process 0; got {coordinator!r}")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id goes from 0 to num_processes - 1; got {process_id} of {num_processes}")
    if num_processes == 1:
        return
    # jax would give every process of Slurm and Open MPI one GPU, also the only one of a machine with several.
    gpus = None if task is None or "JAX_LOCAL_DEVICE_IDS" in os.environ else list(task.gpus)
    # It would take SIGTERM for itself, and have a process that was asked to end go on.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator, num_processes, process_id, gpus, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )


def _from_environment(environment: Mapping[str, str]) -> tuple[str | None, int | None, int | None]:
    """The three arguments, as far as jax's own variables give them."""
    coordinator, index, count = (environment.get(name) for name in _JAX)
    return coordinator, None if index is None else int(index), None if count is None else int(count)


def _completed(
    told: tuple[str | None, int | None, int | None], task: _Task | None, environment: Mapping[str, str]
) -> tuple[str | None, int | None, int | None]:
    """The three arguments, with what a launcher adds to them."""
    coordinator, index, count = told
    if task is None or index is not None or count not in (None, task.count):
        return told
    by_mpirun = "OMPI_COMM_WORLD_SIZE" in environment and "OMPI_MCA_orte_hnp_uri" not in environment
    if by_mpirun and coordinator is None and task.count > 1:
        coordinator = _beside_mpirun(environment)
    return coordinator, task.index, task.count


def _task(environment: Mapping[str, str]) -> _Task | None:
    # Open MPI first: mpirun is often run within a step of Slurm, whose variables are then those of its own helpers.
    if "OMPI_COMM_WORLD_SIZE" in environment:
        index, count, place, neighbours = (
            int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        )
        return _Task(index, count, (place,) if neighbours > 1 else ())
    if "SLURM_STEP_NODELIST" in environment:
        index, count, place, machines = (
            int(environment[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID", "STEP_NUM_NODES")
        )
        return _Task(index, count, (place,) if count > machines else ())
    return None


def _beside_mpirun(environment: Mapping[str, str]) -> str:
    """Where process 0 listens: on the machine of `mpirun`, which puts the first process there."""
    job = environment.get("PMIX_NAMESPACE", "")
    found = _MPIRUN.fullmatch(job)
    if found is None:
        raise ValueError(
            f"Open MPI started {environment['OMPI_COMM_WORLD_SIZE']} processes and does not tell where the first is "
            f"(PMIX_NAMESPACE is {job!r}): run mpirun with -x {_JAX[0]}=host:port, of process 0"
        )
    # A port as jax chooses one for Slurm and Open MPI 4, by the number of the job.
    return f"{found['host']}:{environment.get('JAX_COORDINATOR_PORT') or 61440 + int(found['pid']) % 4096}"


def _on_cloud_tpus(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine of Cloud TPUs whose others jax can find."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1
    # Outside GKE the machine's metadata tell. jax, when it is imported, sets the variable where it finds no chip.
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment
