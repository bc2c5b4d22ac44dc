"""A run's directory, here in as few of its files as a model is read from; clip_train's tests open what it writes."""

import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from clip_models import load_config, load_pretrained
from clip_models.fingerprint import fingerprints


@pytest.fixture
def run(config, params, tmp_path):
    """A run with checkpoints of steps 9 and 10, and one of step 11 under way; its vision tower is frozen."""
    contents = {"model": {"preset": None, "config": dataclasses.asdict(config)}, "ema": {"evaluate": True}}
    (tmp_path / "config.json").write_text(json.dumps(contents))
    averages = jax.tree.map(np.negative, params) | {"vision": jax.tree.map(lambda _: None, params["vision"])}
    with ocp.StandardCheckpointer() as checkpointer:
        for step in (9, 10):
            folder = tmp_path / "checkpoints" / str(step)
            items = {"params": jax.tree.map(lambda x, step=step: x * (step - 9), params), "ema": averages}
            for name, tree in items.items():
                checkpointer.save(folder / name, tree)
            checkpointer.wait_until_finished()
            (folder / "progress").mkdir()
            saved = {name: fingerprints(tree) for name, tree in items.items()}
            (folder / "progress" / "metadata").write_text(json.dumps(saved))
    (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp-1").mkdir()
    return tmp_path, contents


def test_a_runs_directory_is_a_model(run, config, params):
    directory, contents = run
    assert load_config(directory) == config
    loaded_config, loaded = load_pretrained(directory, dtype="bfloat16")
    assert loaded_config == config
    expected = jax.tree.map(np.negative, params) | {"vision": params["vision"]}
    jax.tree.map(lambda ours, x: np.testing.assert_array_equal(ours, x.astype("bfloat16")), loaded, expected)

    (directory / "config.json").write_text(json.dumps(contents | {"ema": None}))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    loaded = load_pretrained(directory, shardings=sharding)[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {leaf.sharding for leaf in jax.tree.leaves(loaded)} == {sharding}


def test_a_runs_directory_is_no_model_before_its_checkpoint_or_when_that_is_torn(run):
    directory, _ = run
    newest = directory / "checkpoints" / "10"
    saved = json.loads((newest / "progress" / "metadata").read_text())
    saved["ema"][0] += 1  # what a flipped bit of the arrays does
    (newest / "progress" / "metadata").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"step 10 .* cannot be read: ema is not what was saved: .*load_run takes"):
        load_pretrained(directory)
    (newest / "params" / "_METADATA").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_pretrained(directory)
    for step in ("9", "10"):
        (directory / "checkpoints" / step).rename(directory / step)
    with pytest.raises(FileNotFoundError, match="holds no finished checkpoint"):
        load_pretrained(directory)
