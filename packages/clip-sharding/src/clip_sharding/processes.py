"""Starting one of the processes that train together, wherever it was started: before anything asks jax for devices."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Mapping

import jax

HEARTBEAT_SECONDS = 60
"""After so long without a sign of life a process counts as dead, and jax ends the others and says which it was."""


def start_processes(
    coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None
) -> None:
    """Join the processes of this run; on a machine by itself, do nothing.

    With no argument, the surroundings tell: Cloud TPU and GKE, Slurm (a job step started by `srun`), Open MPI
    (`mpirun`, up to version 4), and jax's own `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Call
    it once, before anything creates an array or asks for devices. On GPUs under Slurm and Open MPI a process takes the
    one GPU of its rank on the machine; otherwise a process takes all devices of its machine.

    Args:
        coordinator: `host:port` of process 0; the port is any free one.
        process_id: of this process, from 0.
        num_processes: of the run.

    Raises:
        ValueError: one or two of the three are given, or they are out of range.
        RuntimeError: jax has devices already, the other processes did not come, or Open MPI started several and does
            not tell where the first is, as from version 5 on.
    """
    given = (coordinator, process_id, num_processes)
    if all(value is None for value in given):
        given = _from_environment(os.environ)
    if any(value is not None for value in given):
        _join(*given)
    elif _cluster_is_here(os.environ):
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _join(coordinator: str | None, process_id: int | None, num_processes: int | None) -> None:
    if coordinator is None or process_id is None or num_processes is None:
        raise ValueError(
            "a process is started with all of coordinator, process_id and num_processes, or with none where the "
            f"surroundings tell; got {coordinator!r}, {process_id} and {num_processes}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator is the host:port of process 0; got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process_id goes from 0 to num_processes - 1; got {process_id} of {num_processes}")
    if num_processes > 1:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _from_environment(environment: Mapping[str, str]) -> tuple[str | None, int | None, int | None]:
    """The three arguments, where jax's own variables give them all."""
    coordinator, count, index = (
        environment.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    if coordinator is None or count is None or index is None:
        return None, None, None
    return coordinator, int(index), int(count)


def _cluster_is_here(environment: Mapping[str, str]) -> bool:
    """Whether jax can find the other processes by itself."""
    if "SLURM_STEP_NODELIST" in environment:
        return int(environment["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment["OMPI_COMM_WORLD_SIZE"]) > 1
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            f"Open MPI started {environment['OMPI_COMM_WORLD_SIZE']} processes and does not tell where the first is, "
            "as from version 5 on: give each JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or coordinator, num_processes and process_id (OMPI_COMM_WORLD_RANK)"
        )
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1
    # A Cloud TPU machine outside GKE: jax has found its chips, and asks the machine's metadata for the other workers.
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment
