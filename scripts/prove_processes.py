"""Prove on one machine that several processes are one run: the digits example with two and four of them.

Every run here is the example's own command for a few steps, on two CPU devices a process:

- two and four processes follow the losses and results of one, write the same files, and one of them speaks,
- a run that two began continues with four and then with one, and follows them too,
- one that gets SIGTERM stops all, one that is killed or halted ends all within a bounded time, with the reason.

    python scripts/prove_processes.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clip_sharding.processes import HEARTBEAT_SECONDS

# What jax says of a process that is gone, and its collectives of a connection.
REASON = re.compile(r"another task died|heartbeat|[Cc]onnection (closed|reset)|Timed out")
CONFIG = Path(__file__).resolve().parent.parent / "examples" / "digits" / "config.json"
STEPS = 24
# The schedule is that of the whole run, wherever it is stopped.
OVERRIDES = {"train_samples": 128 * STEPS, "checkpoint": '{"every_steps": 8}', "evaluation.0.every": "8 steps"}


def start(output: Path, num_processes: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = []
    for process_id in range(num_processes):
        command = [sys.executable, "-m", "clip_train.cli", "run", str(CONFIG), "--set", f"output_dir={output}"]
        command += [part for name, value in OVERRIDES.items() for part in ("--set", f"{name}={value}")]
        if num_processes > 1:
            command += ["--coordinator", f"127.0.0.1:{port}"]
            command += ["--process-id", str(process_id), "--num-processes", str(num_processes)]
        log = open(output.with_name(f"{output.name}-{process_id}.log"), "a")  # noqa: SIM115
        started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True))
    return started


def rows(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in rows(output) if "loss" in row]


def said(output: Path, process_id: int) -> list[str]:
    """What a process printed, without the lines of the CPU's collectives."""
    lines = output.with_name(f"{output.name}-{process_id}.log").read_text().splitlines()
    return [line for line in lines if line.strip() and "[Gloo]" not in line]


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(timeout=1800) for process in processes]


def wait_for_step(processes: list[subprocess.Popen[str]], output: Path, step: int) -> None:
    while len(losses(output)) < step and all(process.poll() is None for process in processes):
        time.sleep(0.1)


def stopped(output: Path, num_processes: int, step: int) -> None:
    """Run until the last process is asked to stop after a step; all must."""
    processes = start(output, num_processes)
    wait_for_step(processes, output, step)
    processes[-1].send_signal(signal.SIGTERM)
    codes = finish(processes)
    print(
        f"  {num_processes} processes, SIGTERM to the last: exit {codes} after step {len(losses(output))}", flush=True
    )
    assert set(codes) == {128 + signal.SIGTERM}


def apart(one: Path, other: Path) -> float:
    """The largest relative difference of two runs' losses."""
    pairs = list(zip(losses(one), losses(other), strict=True))
    assert len(pairs) == STEPS
    return max(abs(a - b) / a for a, b in pairs)


def results(output: Path) -> dict[str, float]:
    """Every number of every evaluation."""
    evaluation = json.loads((output / "results.json").read_text())["evaluation"]
    assert all(result["num_samples"] == 360 for result in evaluation)
    return {f"{result['dataset']} {name}": value for result in evaluation for name, value in result["metrics"].items()}


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="processes-"))
    print(f"Runs and logs are in {folder}", flush=True)
    for count in (1, 2, 4):
        began = time.monotonic()
        codes = finish(start(folder / str(count), count))
        print(f"{count} processes: exit {codes}, {time.monotonic() - began:.0f} s", flush=True)
        assert set(codes) == {0}
        if count > 1:
            difference = apart(folder / "1", folder / str(count))
            expected, found = results(folder / "1"), results(folder / str(count))
            worst = max(abs(found[name] - value) for name, value in expected.items())
            print(f"  losses within {difference:.1e} of one process's, results within {worst:.1e}", flush=True)
            files = sorted(path.name for path in (folder / str(count)).iterdir())
            assert files == sorted(path.name for path in (folder / "1").iterdir())
            assert [row["step"] for row in rows(folder / str(count)) if "loss" in row] == list(range(1, STEPS + 1))
            others = [line for i in range(1, count) for line in said(folder / str(count), i)]
            assert not others, others
    elastic = folder / "elastic"
    print("2 processes, then 4, then 1:", flush=True)
    stopped(elastic, 2, 6)
    stopped(elastic, 4, 14)
    assert finish(start(elastic, 1)) == [0]
    print(f"  losses within {apart(folder / '1', elastic):.1e} of one process's", flush=True)
    for what, number, victim in (
        ("killed", signal.SIGKILL, 1),
        ("killed", signal.SIGKILL, 0),
        ("halted", signal.SIGSTOP, 1),
    ):
        output = folder / f"{what}-{victim}"
        processes = start(output, 2)
        wait_for_step(processes, output, 4)
        processes[victim].send_signal(number)
        began = time.monotonic()
        code = processes[1 - victim].wait(timeout=600)
        seconds = time.monotonic() - began
        processes[victim].kill()
        processes[victim].wait()
        reason = next(line for line in said(output, 1 - victim) if REASON.search(line))
        print(f"process {victim} {what}: the other exits with {code} after {seconds:.0f} s: {reason[:160]}", flush=True)
        assert code != 0
        assert seconds < 2 * HEARTBEAT_SECONDS


if __name__ == "__main__":
    main()
