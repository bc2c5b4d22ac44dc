"""The directory of a training run of clip_train's: its resolved config, and the newest checkpoint as Orbax wrote it.

It is read where it lies: a run keeps no second copy of its weights, and what is read is what the run would go on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from clip_models.config import ClipConfig
from clip_models.fingerprint import fingerprints
from clip_models.formats.native import config_from_dict
from clip_models.formats.params_io import expected_shapes, place_all
from clip_models.params import Params, check_shapes, flatten, unflatten


def find_run(directory: Path) -> Mapping[str, Any] | None:
    """Returns the resolved config of the run that a directory holds; None where it holds none."""
    path = directory / "config.json"
    if not path.is_file() or not (directory / "checkpoints").is_dir():
        return None
    contents = json.loads(path.read_text())
    return contents if (contents.get("model") or {}).get("config") else None


def config_of_run(contents: Mapping[str, Any]) -> ClipConfig:
    """Returns the model that a run trains."""
    return config_from_dict(contents["model"]["config"])


def read_run(
    directory: Path, contents: Mapping[str, Any], *, config: ClipConfig | None, dtype: str, shardings: Any
) -> tuple[ClipConfig, Params]:
    """Reads a run's newest checkpoint; see :func:`clip_models.load_pretrained`.

    Of a run that keeps moving averages of its parameters it reads these, if they are what the run evaluates.

    Args:
        directory: of the run.
        contents: of its config.
        config: of the model, in place of the run's.
        dtype: of the parameters.
        shardings: as in :func:`clip_models.load_pretrained`.

    Raises:
        FileNotFoundError: it has no finished checkpoint.
        ValueError: the checkpoint is torn, or holds other arrays than those of the config.
    """
    config = config or config_of_run(contents)
    # Orbax renames a checkpoint when it is whole: one that is being written has no number for a name.
    steps = [int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal()]
    if not steps:
        raise FileNotFoundError(f"{directory} holds no finished checkpoint of a run yet.")
    newest = directory / "checkpoints" / str(max(steps))
    evaluates_averages = (contents.get("ema") or {}).get("evaluate", False)
    placements = place_all(shardings, expected_shapes(config))
    try:
        prints = json.loads((newest / "progress" / "metadata").read_text())
        items = {
            name: _read_item(newest / name, placements, prints[name])
            for name in ("params", "ema")
            if name == "params" or evaluates_averages
        }
    except Exception as error:  # a torn file may make its reader say anything
        message = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the checkpoint of step {max(steps)} in {directory} cannot be read: {message}. clip_train.load_run takes "
            "the newest one that can."
        ) from error
    params = items["params"]
    check_shapes(expected_shapes(config), {name: leaf.shape for name, leaf in params.items()}, source=str(newest))
    # Frozen parameters have no average.
    params |= {name: leaf for name, leaf in items.get("ema", {}).items() if leaf is not None}
    return config, unflatten({name: leaf.astype(dtype) for name, leaf in params.items()})


def _read_item(
    directory: Path, placements: Mapping[str, jax.sharding.Sharding | None], prints: list[int]
) -> dict[str, Any]:
    """Reads a tree of arrays, by flat names, as the numbers beside them say they were saved; None where there is none.

    Raises:
        ValueError: they are others.
    """
    import orbax.checkpoint as ocp  # costs a second, and other models have no use for it

    handler: Any = ocp.StandardCheckpointHandler()  # whose types name a path of its own, and takes any
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct | None:
        if leaf is None:
            return None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placements.get(name) or default)

    wanted = {name: place(name, leaf) for name, leaf in flatten(handler.metadata(directory).tree).items()}
    tree = handler.restore(directory, args=ocp.args.StandardRestore(unflatten(wanted)))
    if fingerprints(tree) != prints:
        raise ValueError(f"{directory.name} is not what was saved: its bytes have changed")
    return flatten(tree)
