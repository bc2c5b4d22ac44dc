import functools
import gc
import resource
import shutil
import signal

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


@pytest.mark.parametrize("tear", [cut, flip, lose, empty])
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


def test_a_finished_run_may_be_asked_for_more_steps_and_nothing_else(tmp_path):
    output, config = Output(tmp_path / "run"), {"train_samples": 32, "seed": 0, "log": {"to": ["jsonl"]}}
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


def test_a_write_that_fails_loses_nothing_that_was_saved(saved, abstract, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "checkpoints")
    state = create_state(functools.partial(make, 3.0), optax.adam(1e-3), abstract)
    checkpoints = Checkpoints(directory)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        checkpoints.save(3, state, {"batch": 3})
        with pytest.raises(OSError, match="of step 3 could not be written"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoints.restore(abstract).step == 2
    checkpoints.save(4, state, {"batch": 4})
    checkpoints.wait()
    assert isinstance(checkpoints.restore(abstract).state, TrainState)
    checkpoints.close()
    with Checkpoints(directory) as again:
        assert again.restore(abstract).step == 4
