import os
import socket
import subprocess
import sys
import time

import pytest

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


def start(*arguments, program=PROGRAM, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def slurm_step(process_id, port):
    names = {"JOB_ID": "1", "STEP_NODELIST": "localhost", "NTASKS": "2", "LOCALID": "0", "PROCID": str(process_id)}
    return {"JAX_COORDINATOR_PORT": str(port), **{f"SLURM_{name}": value for name, value in names.items()}}


def test_two_processes_meet_and_hold_one_array():
    ports = free_port(), free_port()
    told = [start(f"127.0.0.1:{ports[0]}", str(i), "2") for i in range(2)]
    found = [start(**slurm_step(i, ports[1])) for i in range(2)]
    for process in told + found:
        printed, error = process.communicate(timeout=120)
        # Gloo prints its own lines first.
        assert printed.splitlines()[-1:] == ["2 4 14.0"], error


def test_a_process_by_itself_needs_nothing():
    batch_script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}  # of sbatch, outside srun
    printed, error = start(**batch_script).communicate(timeout=120)
    assert printed.split() == ["1", "2", "1.0"], error


def test_an_mpi_that_does_not_tell_is_refused(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"started 2 processes .* give each JAX_COORDINATOR_ADDRESS"):
        start_processes()


def test_a_process_ends_soon_after_another_died():
    port = free_port()
    died = "if jax.process_index() == 0: import os; os._exit(1)\nimport time; time.sleep(100)"
    both = [start(f"127.0.0.1:{port}", str(i), "2", program=PROGRAM + died) for i in range(2)]
    started = time.monotonic()
    _, error = both[1].communicate(timeout=120)
    assert time.monotonic() - started < 60
    both[0].communicate()
    assert both[0].returncode == 1
    assert both[1].returncode != 0
    assert "another task died" in error


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
