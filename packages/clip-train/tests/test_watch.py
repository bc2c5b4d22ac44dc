import errno
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_train.guard import NOT_FINITE, OK, SPIKE, GuardConfig, guard
from clip_train.watch import BadStepError, Watch, absurd_first_loss, chance_loss, full_disk, out_of_memory, watched


@pytest.mark.parametrize("spike", ["warn", "skip"])
def test_a_bad_step_changes_nothing(spike):
    tx = guard(optax.adam(0.1), GuardConfig(spike=spike, spike_factor=3.0))
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    update = jax.jit(lambda g, s, v: tx.update({"w": g}, s, params, value=v))
    for _ in range(100):
        _, state = update(jnp.ones(3), state, 2.0)
    assert (int(state.verdict), float(state.mean_loss), int(state.num_steps)) == (OK, pytest.approx(2.0), 100)
    for gradient, loss in ((jnp.array([1.0, jnp.nan, 1.0]), 2.0), (jnp.ones(3), jnp.inf)):
        updates, after = update(gradient, state, loss)
        assert int(after.verdict) == NOT_FINITE
        np.testing.assert_array_equal(updates["w"], np.zeros(3))
        jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)
    updates, after = update(jnp.ones(3), state, 6.1)
    assert int(after.verdict) == SPIKE
    assert (np.asarray(updates["w"]) == 0).all() == (spike == "skip")
    assert float(after.mean_loss) == float(state.mean_loss)


def row(step, **values):
    return {"step": step, "loss": 2.0, "verdict": OK, "grad_norm": 1.0, **values}


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_bad_steps_are_named_with_their_part_and_keys(tmp_path, action):
    said = []
    watch = Watch(GuardConfig(not_finite=action), tmp_path / "bad.jsonl", first_loss=lambda _: None, say=said.append)
    for step in range(1, 40):
        watch.remember(step, [f"key-{step}"])
    watch.write(row(38))
    bad = row(39, verdict=NOT_FINITE, **{"grad_norm/vision": float("nan"), "grad_norm/text": 1.0})
    if action == "stop":
        with pytest.raises(BadStepError, match="Step 39: the gradient of vision is not finite"):
            watch.write(bad)
    else:
        watch.write(bad)
        assert "The update was not made" in said[0]
    for step in (40, 41):  # those under way
        watch.remember(step, [f"key-{step}"])
        watch.write({**bad, "step": step})
    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["step"], line["keys"]) for line in written] == [
        (step, [f"key-{step}"]) for step in ((39,) if action == "stop" else (39, 40, 41))
    ]
    assert written[0]["grad_norm/vision"] is None


def test_skipping_ends_when_the_weights_are_at_fault(tmp_path):
    guard = GuardConfig(not_finite="skip")
    watch = Watch(guard, tmp_path / "bad.jsonl", first_loss=lambda _: None, say=lambda _: None)
    for step in range(1, 25):
        watch.remember(step, [])
        watch.write(row(step, loss=float("nan"), verdict=NOT_FINITE if step > 5 else OK))
    watch.remember(25, [])
    with pytest.raises(BadStepError, match="Steps 6 to 25 were all skipped"):
        watch.write(row(25, verdict=NOT_FINITE))


def test_an_absurd_first_loss_is_said_once(tmp_path):
    said = []
    chance = chance_loss("sigmoid", batch_size=8, vocab_size=0, bias=-np.log(7))
    assert chance == pytest.approx(np.log(8) + 7 * np.log(8 / 7))
    watch = Watch(
        GuardConfig(),
        tmp_path / "bad.jsonl",
        first_loss=lambda loss: absurd_first_loss(loss, chance=chance, pretrained=False),
        say=said.append,
    )
    watch.write({"step": 0, "accuracy": 0.1})
    watch.write(row(1, loss=30.0))
    watch.write(row(2, loss=30.0))
    assert len(said) == 1
    assert "far above chance (3.01)" in said[0]


def test_data_that_do_not_come_are_said():
    def slow():
        for n in range(3):
            time.sleep(0.25)
            yield n

    said = []
    assert list(watched(slow(), said.append, patience=0.1, window=0.4)) == [0, 1, 2]
    assert sum("the data pipeline stalls" in line for line in said) >= 3
    assert sum("went into waiting for data" in line for line in said) == 1
    said.clear()
    assert list(watched(iter(range(1000)), said.append, patience=5, window=0)) == list(range(1000))


def test_out_of_memory_says_what_to_change():
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")
    assert "it wanted 17179869184 bytes" in out_of_memory(error)
    assert out_of_memory(RuntimeError("INTERNAL: something else")) is None


def test_a_full_disk_is_told_whatever_came_of_it():
    after = ValueError("cannot close")
    after.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert "make room" in full_disk(after)
    assert "make room" in full_disk(ValueError("Failed to write 40283 bytes to file 7: No space left on device"))
    assert full_disk(OSError(errno.EACCES, "Permission denied")) is None
