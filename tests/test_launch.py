"""What people start from on many machines is true to the command."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from clip_train.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "launch.md"


def commands():
    """Every `clip-train` command of the guide and of the files to start from."""
    for file in (GUIDE, *sorted((ROOT / "launch").iterdir())):
        for found in re.findall(r"clip-train (?:run|eval) [^\n'`&|]+", file.read_text()):
            yield pytest.param(found.strip(), id=f"{file.name}: {found.strip()}")
    jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    yield pytest.param(shlex.join(pod["containers"][0]["command"]), id="jobset.yaml")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_one_that_the_parser_knows(command):
    program, *arguments = shlex.split(command)
    assert program == "clip-train"
    options = _parser().parse_args(arguments)
    given = (options.coordinator, options.process_id, options.num_processes)
    assert all(value is None for value in given) or all(value is not None for value in given)


def test_the_files_are_there_and_can_be_read():
    linked = {Path(path).name for path in re.findall(r"\(\.\./(launch/[^)]+)\)", GUIDE.read_text())}
    assert linked == {path.name for path in (ROOT / "launch").iterdir()}
    for script in ("tpu.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", ROOT / "launch" / script], check=True)


def test_a_slice_has_as_many_machines_as_its_chips_need():
    jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    per_machine = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == chips // per_machine
