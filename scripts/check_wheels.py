"""Build every wheel, install each alone into an empty environment, and prove that it works there.

In each environment: none of the other packages but those it declares, none of the libraries it must not bring, the
README's first program runs, and so do the package's own tests.

    uv run python scripts/check_wheels.py [--no-tests] [PACKAGE ...]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml"))
# What must not come along, besides undeclared siblings.
FORBIDDEN = {
    "clip-losses": {"flax", "optax", "tensorflow", "transformers"},
    "clip-models": {"tensorflow", "transformers"},
    "clip-sharding": {"flax", "optax", "tensorflow", "transformers"},
    "clip-data": {"jax", "flax", "tensorflow"},
    "clip-train": {"tensorflow"},
    "clip-finetune": {"tensorflow"},
}
TEST_TOOLS = ["pytest", "hypothesis"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, help="which; by default all")
    parser.add_argument("--no-tests", action="store_true", help="leave out the packages' own tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheels = build(Path(scratch) / "dist")
        for package in options.packages:
            check(package, wheels, Path(scratch) / package, with_tests=not options.no_tests)


def build(to: Path) -> dict[str, Path]:
    """Every package's wheel."""
    run(["uv", "build", "--quiet", "--wheel", "--all-packages", "--out-dir", str(to)], cwd=ROOT)
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in to.glob("*.whl")}


def check(package: str, wheels: dict[str, Path], folder: Path, *, with_tests: bool) -> None:
    """Install one wheel into an empty environment and try it there."""
    folder.mkdir()
    run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder / "venv")])
    python = str(folder / "venv/bin/python")
    siblings = closure(package)
    # The siblings are these wheels, never something of the same name from an index.
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{name} @ {wheels[name].as_uri()}\n" for name in siblings))
    install = ["uv", "pip", "install", "--quiet", "--python", python, "--overrides", str(overrides)]
    run([*install, str(wheels[package])], cwd=ROOT)

    installed = set(run([python, "-c", LIST_INSTALLED]).split())
    unwanted = installed & ({*PACKAGES} - siblings - {package} | FORBIDDEN[package])
    if unwanted:
        raise SystemExit(f"{package} brings {', '.join(sorted(unwanted))}")
    program = first_program(ROOT / "packages" / package / "README.md")
    run([python, "-W", "error", "-c", program], cwd=folder)
    print(f"{package}: {len(installed)} distributions, README program runs", flush=True)

    if with_tests:
        run([*install, *TEST_TOOLS, *test_needs(package)], cwd=ROOT)
        config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
        tests = str(ROOT / "packages" / package / "tests")
        last = run([python, "-m", "pytest", *config, tests], cwd=folder).strip().splitlines()[-1]
        print(f"{package}: {last}", flush=True)


def test_needs(package: str) -> list[str]:
    """What a package's tests import beside it."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
    return project.get("dependency-groups", {}).get("test", [])


LIST_INSTALLED = "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"


def closure(package: str) -> set[str]:
    """The siblings that a package declares, and theirs."""
    declared = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]["dependencies"]
    direct = {name for name in PACKAGES for line in declared if re.match(rf"{name}\b(?!-)", line)}
    return direct.union(*(closure(name) for name in direct))


def first_program(readme: Path) -> str:
    """The first Python block of a README."""
    match = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    if match is None:
        raise SystemExit(f"{readme} opens with no program")
    return match[1]


def run(command: list[str], *, cwd: Path | None = None) -> str:
    """What a command prints; it ends this script if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} … failed:\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
