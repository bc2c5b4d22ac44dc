import os
import socket
import subprocess
import sys
import time

import jax
import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster

from clip_sharding import start_processes

PROGRAM = """
import sys
import jax
import numpy as np
from clip_sharding import make_mesh, start_processes, to_global
start_processes(*sys.argv[1:2], *map(int, sys.argv[2:]))
rows = np.arange(2.0) + 2 * jax.process_index()
mesh = make_mesh()
print(jax.process_count(), mesh.size, float(jax.jit(lambda x: (x * x).sum())(to_global(rows, mesh))))
"""


def start(*arguments, program=PROGRAM):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def slurm(process_id, *, tasks, machines):
    """What Slurm tells a process of a step on machines n1, n2 …"""
    nodes = "n1" if machines == 1 else f"n[1-{machines}]"
    names = {"JOB_ID": 1, "STEP_NODELIST": nodes, "NTASKS": tasks, "STEP_NUM_TASKS": tasks}
    names |= {"STEP_NUM_NODES": machines, "PROCID": process_id, "LOCALID": process_id % (tasks // machines)}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def mpirun(rank, *, size, on_machine, **others):
    names = {"RANK": rank, "SIZE": size, "LOCAL_RANK": rank % on_machine, "LOCAL_SIZE": on_machine}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()} | others


VERSION_4 = {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.1.2.3,10.4.5.6:34911"}
VERSION_5 = {"PMIX_NAMESPACE": "prterun-node-07-5000@1"}
FOUND = {
    "alone": ({}, None),
    "sbatch outside srun": ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
    "srun of one": (slurm(0, tasks=1, machines=1), None),
    "srun, two on each machine": (slurm(3, tasks=4, machines=2), ("n1:61441", 4, 3, [1])),
    "srun, one on each machine": (slurm(1, tasks=2, machines=2), ("n1:61441", 2, 1, [])),
    "srun, coordinator given": (
        slurm(1, tasks=2, machines=2) | {"JAX_COORDINATOR_ADDRESS": "a:1"},
        ("a:1", 2, 1, []),
    ),
    "mpirun 4": (mpirun(3, size=4, on_machine=2, **VERSION_4), ("10.1.2.3:61442", 4, 3, [1])),
    "mpirun 5": (mpirun(1, size=2, on_machine=1, **VERSION_5), ("node-07:62344", 2, 1, [])),
    "mpirun 5 of one": (mpirun(0, size=1, on_machine=1, **VERSION_5), None),
    "mpirun, coordinator given": (
        mpirun(1, size=2, on_machine=2, JAX_COORDINATOR_ADDRESS="a:1"),
        ("a:1", 2, 1, [1]),
    ),
    # Slurm's variables are then those of the step that mpirun itself runs in, or of its helpers.
    "mpirun 4 in a step": (
        slurm(0, tasks=1, machines=1) | mpirun(3, size=4, on_machine=4, **VERSION_4),
        ("10.1.2.3:61442", 4, 3, [3]),
    ),
    "mpirun 5 in a step": (
        slurm(1, tasks=2, machines=2) | mpirun(3, size=4, on_machine=2, **VERSION_5),
        ("node-07:62344", 4, 3, [1]),
    ),
    "jax's variables in a step": (
        slurm(0, tasks=1, machines=1)
        | {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
        ("a:1", 2, 1, []),
    ),
    "GKE, one machine": ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    "GKE": ({"TPU_WORKER_HOSTNAMES": "localhost,b", "TPU_WORKER_ID": "1"}, ("localhost:8482", 2, 1, None)),
    "GKE, two slices": (
        {
            "TPU_WORKER_HOSTNAMES": "c,d",
            "TPU_WORKER_ID": "1",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        },
        ("localhost:8482", 4, 3, None),
    ),
}


# Of a TPU machine: names, numbers and addresses of the workers, and no word of slices.
METADATA = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:127.0.0.1,b:1:127.0.0.2", "tpu-env": ""}


@pytest.fixture
def surroundings(monkeypatch):
    """Sets the environment that a process is started in, and gives what it then joins: None, if nothing."""
    joined = []

    def initialize(coordinator=None, count=None, index=None, gpus=None, **_):
        # jax's own search for what it was not given.
        coordinator, count, index, gpus = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), count, index, gpus, None, 1
        )
        joined.append((coordinator, count, index, gpus))

    def set_to(**variables):
        for name in list(os.environ):
            if name.startswith(
                ("SLURM_", "OMPI_", "PMIX_", "TPU_", "MEGASCALE_", "JAX_COORDINATOR", "JAX_NUM_P", "JAX_PRO")
            ):
                monkeypatch.delenv(name)
        for name, value in ({"TPU_SKIP_MDS_QUERY": "1"} | variables).items():
            monkeypatch.setenv(name, value)
        return joined

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (METADATA[key], 200))
    return set_to


@pytest.mark.parametrize("where", FOUND)
def test_a_process_finds_its_number_in_its_surroundings(where, surroundings, monkeypatch):
    variables, expected = FOUND[where]
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", "GKE" in where)
    joined = surroundings(**variables)
    start_processes()
    assert joined == ([] if expected is None else [expected])


def test_a_machine_of_cloud_tpus_asks_its_metadata(surroundings, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("clip_sharding.processes.importlib.util.find_spec", lambda name: name == "libtpu")
    joined = surroundings()
    start_processes()  # jax, imported where it finds no chip, says so
    assert joined == []
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    start_processes()
    assert joined == [("127.0.0.1:8482", 2, 1, None)]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID.*; got 'a:1', None and 2"),
        ({"JAX_PROCESS_ID": "0"}, "; got None, 0 and None"),
        # A step of one process each, and no word which of the two this is.
        ({"JAX_NUM_PROCESSES": "2", **slurm(0, tasks=1, machines=1)}, "; got None, None and 2"),
        (mpirun(0, size=2, on_machine=2), "started 2 processes .* -x JAX_COORDINATOR_ADDRESS=host:port"),
    ],
)
def test_surroundings_that_tell_half_are_refused(variables, message, surroundings):
    joined = surroundings(**variables)
    with pytest.raises(ValueError, match=message):
        start_processes()
    assert joined == []


def test_two_processes_meet_and_hold_one_array():
    port = free_port()
    for process in [start(f"127.0.0.1:{port}", str(i), "2") for i in range(2)]:
        printed, error = process.communicate(timeout=120)
        # Gloo prints its own lines first.
        assert printed.splitlines()[-1:] == ["2 4 14.0"], error


def test_a_process_ends_soon_after_another_died():
    # A shorter silence than runs allow, since that is what tells of any process but the first.
    hasty = "import clip_sharding.processes\nclip_sharding.processes.HEARTBEAT_SECONDS = 10\n"
    died = "if jax.process_index() == {}: import os; os._exit(1)\nimport time; time.sleep(100)"
    pairs = []
    for victim in range(2):
        address = f"127.0.0.1:{free_port()}"
        pairs.append([start(address, str(i), "2", program=hasty + PROGRAM + died.format(victim)) for i in range(2)])
    for victim, pair in enumerate(pairs):
        started = time.monotonic()
        _, error = pair[1 - victim].communicate(timeout=120)
        assert time.monotonic() - started < 60
        pair[victim].communicate()
        assert pair[victim].returncode == 1
        assert pair[1 - victim].returncode != 0
        assert ("another task died" if victim == 0 else "heartbeat") in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 0, None), "all of coordinator, process_id and num_processes"),
        (("127.0.0.1", 0, 2), "host:port of process 0; got '127.0.0.1'"),
        (("127.0.0.1:1", 2, 2), "from 0 to num_processes - 1; got 2 of 2"),
    ],
)
def test_half_of_an_address_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        start_processes(*arguments)
