"""What a frozen tower makes of all samples: computed once, over all devices, and kept by content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_finetune.backbone import tower_features, tower_inputs
from clip_finetune.config import FeatureKind
from clip_finetune.samples import Identified, no_sample
from clip_models import ClipConfig
from clip_models.fingerprint import fingerprints
from clip_sharding import BATCH_AXES, MeshConfig, batch_sharding, make_mesh, to_global


class Featured(NamedTuple):
    """Samples as a linear head sees them.

    Attributes:
        features: float32 `[n, f]`.
        targets: int32 `[n]`, or multi-hot `[n, c]`.
        faults: how many samples could not be used, by reason.
        unusable: the latest of those, in words.
    """

    features: np.ndarray
    targets: np.ndarray
    faults: dict[str, int]
    unusable: tuple[str, ...]


class OverDevices:
    """A function of parameters and a batch, compiled with the batch divided over all devices.

    Args:
        function: `(params, arrays) -> array [b, ...]`.
        params: on every device.
    """

    def __init__(self, function: Callable[[Any, Any], jax.Array], params: Any) -> None:
        self._mesh: Mesh = make_mesh(MeshConfig())
        self._run = _jitted(function, self._mesh)
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def __call__(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """What it makes of a batch."""
        return np.asarray(self._run(self._params, to_global(arrays, self._mesh)))

    def batch_size(self, wanted: int) -> int:
        """The nearest batch size, upwards, that divides over the devices."""
        num_shards = int(np.prod([self._mesh.shape[axis] for axis in BATCH_AXES]))
        return -(-wanted // num_shards) * num_shards


@functools.lru_cache(maxsize=8)
def _jitted(function: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    # The same compiled program for an equal function, such as at each epoch.
    return jax.jit(function, out_shardings=batch_sharding(mesh))


@dataclasses.dataclass(frozen=True)
class _Features:
    """The features of a batch, equal for equal towers."""

    config: ClipConfig
    kind: FeatureKind

    def __call__(self, params: Any, arrays: dict[str, jax.Array]) -> jax.Array:
        return tower_features(self.config, params, tower_inputs(self.config, arrays), self.kind)


def labelled_features(
    config: ClipConfig,
    params: Any,
    samples: Identified,
    *,
    kind: FeatureKind = "pooled",
    batch_size: int,
    cache: Path | None = None,
) -> Featured:
    """What a tower makes of every sample, once.

    Args:
        config: of the tower.
        params: with it.
        samples: labelled, or of targets that mean nothing.
        kind: as in `tower_features`.
        batch_size: samples at once.
        cache: where features are kept, and found again while weights, samples and preprocessing are the same.

    Raises:
        ValueError: there is no sample, or one has no label, or one that is no class.
        DataError: too many cannot be used.
    """
    kept = None if cache is None else _place(cache, config, params, samples, kind)
    if kept is not None and (found := _read(kept)) is not None:
        return found
    run = OverDevices(_Features(config, kind), params)
    features, targets = [], []
    with samples.read(config, batch_size=run.batch_size(batch_size)) as reader:
        for rows in reader:
            targets.append(rows.targets)
            features.append(run(rows.arrays)[rows.mask])
        faults, unusable = reader.faults, reader.unusable
    if not features:
        raise no_sample(samples)
    made = Featured(np.concatenate(features), np.concatenate(targets), faults, unusable)
    if kept is not None:
        _write(kept, made)
    return made


def cache_directory(given: str | None) -> Path | None:
    """Where features are kept: `auto` is the user's cache, as of compiled programs."""
    if given != "auto":
        return None if given is None else Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "clip-jax" / "features"


def _place(cache: Path, config: ClipConfig, params: Any, samples: Identified, kind: FeatureKind) -> Path | None:
    identity = samples.identity()
    if identity is None:
        return None
    asked = {
        "version": 2,
        "config": dataclasses.asdict(config),
        "weights": fingerprints(params),
        "kind": kind,
        "samples": identity,
    }
    return cache / f"{hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]}.npz"


def _read(path: Path) -> Featured | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            faults, unusable = json.loads(str(arrays["faults"]))
            return Featured(arrays["features"], arrays["targets"], faults, tuple(unusable))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent, or cut short: it is made again
        return None


def _write(path: Path, made: Featured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    faults = np.array(json.dumps([made.faults, made.unusable]))
    np.savez(buffer := io.BytesIO(), features=made.features, targets=made.targets, faults=faults)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(buffer.getvalue())
    beside.replace(path)
