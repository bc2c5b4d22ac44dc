"""A run's directory: whose it is, and the files that say what ran where."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import jax

from clip_data.buckets import REMOTE, delete_object, list_below, read_object, write_object
from clip_train import lease
from clip_train.config_changes import differences, in_words
from clip_train.config_file import ConfigError
from clip_train.processes import is_first
from clip_train.room import Room

# Files in folders that a run that is continued reads: W&B's of its earlier starts.
_CONTINUED = ("wandb/run_id", "wandb/offline-run-*/*.wandb")
_PACKAGES = ("clip-losses", "clip-models", "clip-sharding", "clip-data", "clip-train", "jax", "jaxlib", "flax", "optax")


class Output:
    """The files of one run.

    Those of a run in a bucket are kept on this machine too, where they are read and written: what is there when the
    run is opened is fetched, and what has changed since is sent by `publish`. Nothing is ever appended to an object.
    Use it in a `with` block, or close it.

    Args:
        directory: a local path, `gs://` or `s3://`.

    Attributes:
        address: the directory, as it was given.
        root: the directory on this machine.

    Raises:
        OSError: the bucket cannot be read, or there is none.
    """

    def __init__(self, directory: str | Path) -> None:
        self.address = str(directory).rstrip("/")
        self._room = Room(self.address) if self.in_bucket else None
        self.root = self._room.path if self._room else Path(directory)
        self._sent: dict[str, tuple[int, int]] = {}
        if self.in_bucket:
            there = list_below(self.address)
            self._fetch(name for name in (self.config.name, self.results.name) if name in there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is kept here of a run in a bucket."""
        if self._room is not None:
            self._room.close()

    @property
    def in_bucket(self) -> bool:
        """Whether it is one."""
        return self.address.startswith(REMOTE)

    @property
    def title(self) -> str:
        """The directory's own name."""
        return self.address.rpartition("/")[2]

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
    def checkpoints(self) -> str:
        """Where checkpoints go."""
        return self.checkpoints_of(self.address)

    @staticmethod
    def checkpoints_of(address: str) -> str:
        """Where those of any run are."""
        return f"{address.rstrip('/')}/checkpoints"

    def has_checkpoints(self) -> bool:
        """Whether there is a place for them already."""
        if self.in_bucket:
            return bool(list_below(self.checkpoints))
        return Path(self.checkpoints).is_dir()

    def has_steps(self) -> bool:
        """Whether steps were saved, or results written: something that another start must not overwrite."""
        if self.results.exists():
            return True
        if self.in_bucket:
            return bool(list_below(self.checkpoints))
        return any(
            entry.name.isdigit()
            for folder in (Path(self.checkpoints), self.root / "torn")
            for entry in (folder.iterdir() if folder.is_dir() else ())
        )

    def name(self, path: Path) -> str:
        """What a file of the run is called where the run is."""
        return f"{self.address}/{path.relative_to(self.root)}"

    def before(self) -> dict[str, Any] | None:
        """The resolved config of the run that is here; `None`: there is none."""
        return json.loads(self.config.read_text()) if self.config.exists() else None

    def claim(
        self,
        config: dict[str, Any],
        *,
        complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
        is_free: bool = False,
    ) -> bool:
        """Make sure that the directory is empty or this run's.

        Args:
            config: the resolved config.
            complete: fills in the fields that a config of an earlier version lacks.
            is_free: whether it may be another run's that has come to nothing.

        Returns:
            Whether the directory holds this run already.

        Raises:
            ConfigError: it holds something else; the message says what and the ways out.
        """
        if not self.in_bucket and self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output_dir: {self.root} is a file; give a directory")
        # A file that ends so was never finished: a first start was cut off while writing it.
        if all(name.endswith(".new") or name == lease.NAME for name in self._names()):
            return False
        before = self.before()
        if before is None:
            raise ConfigError(
                f"output_dir: {self.address} is not empty and holds no run of ours; "
                "give an empty or new directory: --set output_dir=DIR"
            )
        if is_free:
            return True
        if changes := differences(complete(before), config):
            raise ConfigError(
                f"output_dir: {self.address} holds another run; its config differs:\n{in_words(changes)}\n"
                "Give another directory (--set output_dir=DIR), or undo the change to continue that run"
            )
        return True

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether the run is done with all that this config, the resolved one, asks for: it may ask for more steps."""
        before = self.before()
        return self.results.exists() and before is not None and before["train_samples"] == config["train_samples"]

    def check_shared(self) -> None:
        """Make sure that this process sees what the first one wrote.

        Raises:
            ConfigError: it does not.
        """
        if self.config.name not in self._names():
            raise ConfigError(
                f"output_dir: {self.address} must be a directory that all processes see, such as one on a network file "
                "system; what the first process wrote there is not here"
            )

    def begin(self, config: dict[str, Any]) -> None:
        """Have a config here, this one if there is none, and of a run in a bucket what it goes on from."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.in_bucket:
            self._fetch(
                name
                for name in list_below(self.address)
                if any(fnmatch(name, kept) for kept in _CONTINUED) or ("/" not in name and name != lease.NAME)
            )
        if not self.config.exists():
            write_json(self.config, config)
            self.publish()

    def forget_wandb(self) -> None:
        """Have what follows be another run at Weights & Biases: it is one, and nothing was saved of that before."""
        kept = self.root / "wandb" / "run_id"
        kept.unlink(missing_ok=True)
        if self.in_bucket:
            delete_object(self.name(kept))

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved config and the environment; what was finished before is no longer."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.results.unlink(missing_ok=True)
        if self.in_bucket:
            delete_object(self.name(self.results))
        write_json(self.config, config)
        write_json(self.environment, environment())
        self.publish()

    def publish(self) -> None:
        """Send what has changed to the bucket, if the run is in one; of several processes the first does.

        Raises:
            OSError: it could not be written.
        """
        self.changes()()

    def changes(self) -> Callable[[], None]:
        """Keep what has changed as it is now, and give what sends it: that may be called while the run goes on."""
        if not self.in_bucket or not is_first():
            return lambda: None
        files = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        found = {str(path.relative_to(self.root)): path for path in files if path.suffix != ".new"}
        marks = {name: (path.stat().st_mtime_ns, path.stat().st_size) for name, path in found.items()}
        # The results come last: their presence says that the run is finished.
        changed = sorted((name for name in found if self._sent.get(name) != marks[name]), key=self._is_results)
        kept = Path(tempfile.mkdtemp(dir=self.root.parent))
        for name in changed:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found[name], kept / name)

        def send() -> None:
            try:
                for name in changed:
                    write_object(f"{self.address}/{name}", kept / name)
                    self._sent[name] = marks[name]
            finally:
                shutil.rmtree(kept)

        return send

    def _is_results(self, name: str) -> bool:
        return name == self.results.name

    def _names(self) -> list[str]:
        if self.in_bucket:
            return list(list_below(self.address))
        return [path.name for path in self.root.iterdir()] if self.root.exists() else []

    def _fetch(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_object(self.name(path)))
            self._sent[name] = (path.stat().st_mtime_ns, path.stat().st_size)


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
    with beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
