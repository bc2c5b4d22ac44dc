import dataclasses
import errno
import functools
import gc
import json
import re
import resource
import shutil
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_sharding import MeshConfig, make_mesh, shardings, strategy
from clip_train.checkpoint import Checkpoints
from clip_train.config_file import ConfigError
from clip_train.output import Output
from clip_train.state import TrainState, abstract_state, create_state

# Orbax leaves coroutines behind where a file fails, and they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}


def make(scale=1.0):
    noise = jax.random.normal(jax.random.key(0), (64, 1024))
    return {"w": scale * noise, "b": jnp.full(1024, scale)}


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def abstract():
    mesh, tx = make_mesh(MeshConfig(data=1, fsdp=8)), optax.adam(1e-3)
    return abstract_state(make, tx, shardings(strategy("fsdp"), mesh, AXES, jax.eval_shape(make)), mesh)


@pytest.fixture(scope="module")
def saved(abstract, tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            state = create_state(functools.partial(make, float(step)), optax.adam(1e-3), abstract)
            state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)  # zeros are not written at all
            checkpoints.save(step, state, {"batch": step})
    return directory


def largest_file(directory):
    return max(directory.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def cut(checkpoint):
    path = largest_file(checkpoint / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(checkpoint):
    path = largest_file(checkpoint / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def lose(checkpoint):
    largest_file(checkpoint / "params").unlink()


def empty(checkpoint):
    (checkpoint / "progress" / "metadata").write_bytes(b"")


def move_on(checkpoint):
    """Changes one digit of the position in the data."""
    path = checkpoint / "progress" / "metadata"
    progress = json.loads(path.read_text())
    path.write_text(json.dumps({**progress, "cursor": {"batch": 3}}))


def take_for_another(checkpoint):
    shutil.copytree(checkpoint.parent / "1", checkpoint, dirs_exist_ok=True)


@pytest.mark.parametrize("tear", [cut, flip, lose, empty, move_on, take_for_another])
def test_a_torn_checkpoint_is_told_and_the_one_before_is_used(saved, abstract, tmp_path, tear):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    tear(directory / "2")
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(abstract)
        assert (restored.step, restored.torn, restored.cursor) == (1, (2,), {"batch": 1})
        assert int(restored.state.step) == 1
        np.testing.assert_array_equal(restored.state.params["w"], make()["w"] + 1)
        assert restored.state.params["w"].sharding == abstract.params["w"].sharding
        # The run comes by step 2 again, and saves it.
        checkpoints.save(2, restored.state, {"batch": 2})
        checkpoints.wait()
        assert checkpoints.restore(abstract).step == 2
    assert [path.name.split("-")[0] for path in (tmp_path / "torn").iterdir()] == ["2"]


def test_what_cannot_be_read_now_is_not_put_aside(saved, abstract, tmp_path, monkeypatch):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    with Checkpoints(directory) as checkpoints:
        with monkeypatch.context() as patch:
            error = OSError(errno.EIO, "Input/output error")
            patch.setattr(checkpoints._store, "read", mock.Mock(side_effect=error))
            with pytest.raises(
                OSError, match=r"of step 2 in .* cannot be read now: .*Input/output error.* stays where"
            ):
                checkpoints.restore(abstract)
        assert checkpoints.restore(abstract).step == 2


def test_an_optimizers_state_of_another_shape_is_not_cut_to_fit(saved, abstract):
    moments = abstract.opt_state[0]
    shorter = jax.ShapeDtypeStruct((8,), moments.mu["b"].dtype, sharding=abstract.step.sharding)
    changed = moments._replace(mu={**moments.mu, "b": shorter})
    with Checkpoints(saved, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match=r"mu\['b'\] has the shape \[1024\] there, \(8,\) here"):
            checkpoints.restore(dataclasses.replace(abstract, opt_state=(changed, *abstract.opt_state[1:])))
        assert checkpoints.restore(abstract, step=1).step == 1
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .* there are those of steps 1, 2"):
            checkpoints.restore(abstract, step=3)


def test_a_finished_run_may_be_asked_for_more_steps_and_nothing_else(tmp_path):
    output, config = Output(tmp_path / "run"), {"train_samples": 32, "seed": 0, "log": {"to": ["jsonl"]}}
    assert not output.claim(config)
    output.root.mkdir()
    for left in ("lock", "config.json.new"):  # by a start that was killed
        (output.root / left).touch()
    assert not output.claim(config)
    output.write_config(config)
    assert not output.is_finished(config)
    output.results.write_text("{}")
    assert output.claim(config | {"log": {"to": []}})
    assert output.is_finished(config | {"log": {"to": []}})
    longer = config | {"train_samples": 48}
    assert output.claim(longer)
    assert not output.is_finished(longer)
    with pytest.raises(ConfigError, match="seed: 0 there, 1 here"):
        output.claim(config | {"seed": 1})


def test_no_checkpoint_that_can_be_read_is_one_error(saved, abstract, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    for step in ("1", "2"):
        lose(directory / step)
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError, match=r"no checkpoint in .* of step 2: "):
        checkpoints.restore(abstract)
    with Checkpoints(tmp_path / "none") as checkpoints, pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.restore(abstract)


@pytest.fixture
def full_disk():
    """Call it to have the disk full, as far as checkpoints are concerned, or not."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if full else limits[0], limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_write_that_fails_loses_nothing_and_leaves_nothing(saved, abstract, tmp_path, full_disk):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    state = create_state(functools.partial(make, 3.0), optax.adam(1e-3), abstract)
    told = []
    checkpoints = Checkpoints(directory, keep=2, say=told.append)
    full_disk(True)
    for step in (3, 4):
        checkpoints.save(step, state, {"batch": step})
    with pytest.raises(OSError, match="of step 4 could not be written"):
        checkpoints.wait()
    full_disk(False)
    assert [re.search(r"of step \d", text)[0] for text in told] == ["of step 3"]
    assert names(directory) == ["1", "2"]
    assert checkpoints.restore(abstract).step == 2
    checkpoints.save(4, state, {"batch": 4})  # the one that failed
    checkpoints.wait()
    assert names(directory) == ["2", "4"]
    assert isinstance(checkpoints.restore(abstract).state, TrainState)
    checkpoints.close()


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_that_writes(saved, abstract, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.copytree(directory / "2", directory / "3.orbax-checkpoint-tmp")
    with Checkpoints(directory, read_only=True) as checkpoints:  # while another may be writing it
        assert checkpoints.restore(abstract).step == 2
        assert names(directory) == ["1", "2", "3.orbax-checkpoint-tmp"]
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(3, checkpoints.restore(abstract).state, {"batch": 3})
    assert names(directory) == ["1", "2", "3"]


def test_a_step_that_is_on_its_way_is_not_written_again(abstract, tmp_path):
    state = create_state(functools.partial(make, 3.0), optax.adam(1e-3), abstract)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        before = checkpoints._store.save
        checkpoints._store.save = pytest.fail
        checkpoints.save(1, state, {})
        checkpoints._store.save = before
        assert names(tmp_path) == ["1"]
