"""A run's directory: whose it is, and the files that say what ran where."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from clip_sharding import exchange
from clip_train.config_file import ConfigError
from clip_train.processes import AgreedError

# What may differ between two starts of one run: it changes nothing that the run has computed.
_HARMLESS = frozenset({"output_dir", "log", "checkpoint", "evaluation", "guard", "train_samples", "data.num_threads"})
_PACKAGES = ("clip-losses", "clip-models", "clip-sharding", "clip-data", "clip-train", "jax", "jaxlib", "flax", "optax")


@dataclasses.dataclass(frozen=True)
class Output:
    """The files of one run.

    Attributes:
        root: the directory.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, every default filled in."""
        return self.root / "config.json"

    @property
    def environment(self) -> Path:
        """Versions, devices, git revision."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One row per step."""
        return self.root / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The final evaluations: there once the run is finished."""
        return self.root / "results.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def profile(self) -> Path:
        """Traces of jax's profiler."""
        return self.root / "profile"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.root / "checkpoints"

    def claim(self, config: dict[str, Any]) -> bool:
        """Make sure that the directory is empty or this run's.

        Args:
            config: the resolved config.

        Returns:
            Whether the directory holds this run already.

        Raises:
            ConfigError: it holds something else; the message says what and the ways out.
        """
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output_dir: {self.root} is a file; give a directory")
        # A file that ends so was never finished: a first start was cut off while writing it.
        if not self.root.exists() or all(path.suffix == ".new" for path in self.root.iterdir()):
            return False
        if not self.config.exists():
            raise ConfigError(
                f"output_dir: {self.root} is not empty and holds no run of ours; "
                "give an empty or new directory: --set output_dir=DIR"
            )
        before = json.loads(self.config.read_text())
        if changes := differences(before, config):
            raise ConfigError(
                f"output_dir: {self.root} holds another run; its config differs:\n"
                + "\n".join(f"  {path}: {old} there, {new} here" for path, old, new in changes)
                + "\nGive another directory (--set output_dir=DIR), or undo the change to continue that run"
            )
        return True

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether the run is done with all that this config, the resolved one, asks for: it may ask for more steps."""
        if not self.results.exists():
            return False
        return json.loads(self.config.read_text())["train_samples"] == config["train_samples"]

    def check_shared(self) -> None:
        """Make sure that this process sees what the first one wrote.

        Raises:
            ConfigError: it does not.
        """
        if not self.config.exists():
            raise ConfigError(
                f"output_dir: {self.root} must be a directory that all processes see, such as one on a network file "
                "system; what the first process wrote there is not here"
            )

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved config and the environment; what was finished before is no longer."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.results.unlink(missing_ok=True)
        write_json(self.config, config)
        write_json(self.environment, environment())


def check_alike(config: dict[str, Any]) -> None:
    """Make sure that all processes were started with the same config.

    Args:
        config: the resolved config.

    Raises:
        AgreedError: naming the first process whose config differs, and where.
    """
    first, *others = exchange(config)
    for process, other in enumerate(others, start=1):
        if changes := differences(first, other, harmless=()):
            raise AgreedError(
                f"all processes of a run are given the same config; that of process {process} differs:\n"
                + "\n".join(f"  {path}: {theirs}, and {ours} in process 0" for path, ours, theirs in changes)
            )


def differences(
    before: dict[str, Any], after: dict[str, Any], harmless: Collection[str] = _HARMLESS
) -> list[tuple[str, str, str]]:
    """What differs between two configs: `(path, before, after)`.

    Args:
        before: a resolved config.
        after: another.
        harmless: the fields that may; by default those that change nothing of what the run computes.
    """
    flat_before, flat_after = _flatten(before), _flatten(after)
    changed = [path for path in flat_before | flat_after if flat_before.get(path) != flat_after.get(path)]
    return [
        (path, json.dumps(flat_before.get(path)), json.dumps(flat_after.get(path)))
        for path in changed
        if not any(path == field or path.startswith(field + ".") for field in harmless)
    ]


def environment() -> dict[str, Any]:
    """Versions, devices and git revision of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "num_cpus": os.cpu_count(),
        "command": sys.argv,
        "git_revision": _git_revision(),
    }


def write_json(path: Path, tree: Any) -> None:
    """Write a file whole or not at all."""
    beside = path.with_suffix(path.suffix + ".new")
    beside.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {path: tree}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat |= _flatten(value, f"{path}.{name}" if path else str(name))
    return flat
