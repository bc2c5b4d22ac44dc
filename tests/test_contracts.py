"""What holds for the whole tree: lint, types, import contracts, declared dependencies, one version, light imports."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted((ROOT / "packages").iterdir())
BIN = Path(sys.executable).parent


def run(*command, cwd=ROOT):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [("ruff", "check"), ("ruff", "format", "--check"), ("lint-imports",), ("pyright",)])
def test_lint(command):
    run(BIN / command[0], *command[1:])


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_each_package_declares_what_it_imports(package):
    run(BIN / "deptry", "src", cwd=package)


def test_one_version_and_one_licence():
    projects = [tomllib.loads((package / "pyproject.toml").read_text())["project"] for package in PACKAGES]
    assert {project["version"] for project in projects} == {"0.1.0"}
    licence = (ROOT / "LICENSE").read_text()
    for package in PACKAGES:
        assert (package / "LICENSE").read_text() == licence
        assert (package / "src" / package.name.replace("-", "_") / "py.typed").exists()


IMPORTED = """
import json, sys
{before}
before = set(sys.modules)
import {module}
print(json.dumps([*sys.modules.keys() - before]))
"""


@pytest.mark.parametrize(
    ("module", "before", "never"),
    [
        ("clip_losses", "import jax, jax.numpy, jax.sharding", r"(?!jax|clip_losses).*"),
        ("clip_data.pipeline", "", "jax|tensorflow|transformers|torch|pyarrow"),
        ("clip_data.cli", "", "jax|tensorflow|transformers|torch|pyarrow|numpy|PIL"),
        ("clip_train.cli", "", "jax|numpy|pydantic|rich|transformers|orbax|optax|clip_models|clip_data"),
        ("clip_finetune.cli", "", "jax|numpy|pydantic|rich|transformers|orbax|optax|clip_models|clip_data"),
    ],
)
def test_light_imports(module, before, never):
    added = json.loads(run(sys.executable, "-c", IMPORTED.format(module=module, before=before)))
    assert f"{module}".split(".")[0] in {name.split(".")[0] for name in added}
    heavy = {name.split(".")[0] for name in added if re.fullmatch(never, name.split(".")[0])}
    assert not heavy


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_first_program_of_each_readme_runs(package, tmp_path):
    program = re.search(r"```python\n(.*?)```", (package / "README.md").read_text(), re.DOTALL)
    assert program is not None
    run(sys.executable, "-W", "error", "-c", program[1], cwd=tmp_path)


def test_a_wheel_alone_brings_only_what_it_declares():
    printed = run(sys.executable, "scripts/check_wheels.py", "--no-tests", "clip-losses")
    assert "clip-losses" in printed
