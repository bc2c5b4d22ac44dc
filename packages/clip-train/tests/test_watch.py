import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_train.first_loss import absurd_first_losses
from clip_train.guard import NOT_FINITE, OK, SPIKE, GuardConfig, guard
from clip_train.objective import LossConfig
from clip_train.optimizers import LionConfig, ScheduleConfig, make_optimizer, make_schedule
from clip_train.state import TrainState
from clip_train.step import make_step
from clip_train.watch import BadStepError, Watch


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
    # Finite, but an update of it is not: its square is beyond float32.
    updates, after = update(jnp.full(3, 1e30), state, 2.0)
    assert int(after.verdict) == NOT_FINITE
    updates, after = update(jnp.ones(3), state, 6.1)
    assert int(after.verdict) == SPIKE
    assert (np.asarray(updates["w"]) == 0).all() == (spike == "skip")
    assert float(after.mean_loss) == float(state.mean_loss)


def row(step, **values):
    return {"step": step, "loss": 2.0, "verdict": OK, "grad_norm": 1.0, **values}


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_bad_steps_are_named_with_their_part_and_keys(tmp_path, action):
    said = []
    watch = Watch(GuardConfig(not_finite=action), tmp_path / "bad.jsonl", say=said.append)
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
    watch = Watch(guard, tmp_path / "bad.jsonl", say=lambda _: None)
    for step in range(1, 25):
        watch.remember(step, [])
        watch.write(row(step, loss=float("nan"), verdict=NOT_FINITE if step > 5 else OK))
    watch.remember(25, [])
    with pytest.raises(BadStepError, match="Steps 6 to 25 were all skipped"):
        watch.write(row(25, verdict=NOT_FINITE))


def test_a_start_goes_on_from_the_bad_steps_until_its_checkpoint(tmp_path):
    path, skip = tmp_path / "bad.jsonl", GuardConfig(not_finite="skip")

    def go(first_step, last_step):
        watch = Watch(skip, path, first_step=first_step, say=lambda _: None)
        for step in range(first_step + 1, last_step + 1):
            watch.remember(step, [f"key-{step}"])
            watch.write(row(step, verdict=OK if step == 3 else NOT_FINITE))
        watch.flush()
        watch.close()

    go(0, 8)
    go(6, 9)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2, 4, 5, 6, 7, 8, 9]
    go(9, 22)
    with pytest.raises(BadStepError, match="Steps 4 to 23 were all skipped"):
        go(22, 23)


def test_a_skipped_step_is_one_of_the_schedule():
    schedule = make_schedule(ScheduleConfig(decay="linear"), peak=1.0, warmup_steps=0, num_steps=10)
    tx = guard(make_optimizer(LionConfig(weight_decay=0.0, clip_norm=None), schedule), GuardConfig(not_finite="skip"))
    params = {"w": jnp.zeros((2, 2))}
    state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
    step = make_step(lambda params, scale, key: (jnp.sum(params["w"]) * scale, {}), tx, learning_rate=schedule)
    for i in range(10):
        before = float(state.params["w"][0, 0])
        state, metrics = step(state, jnp.float32(jnp.nan if i in (3, 4) else 1.0))
        rate = 0.0 if i in (3, 4) else float(metrics["learning_rate"])
        assert before - float(state.params["w"][0, 0]) == pytest.approx(rate, abs=1e-6)


BATCH = {"batch_size": 4096, "vocab_size": 1000}


@pytest.mark.parametrize(
    ("loss", "metrics", "found"),
    [
        ({"kind": "sigmoid"}, {"loss": 4096 * np.log(2)}, ["contrastive loss, 2.84e+03, is far above chance (9.32)"]),
        ({"kind": "sigmoid"}, {"loss": 9.4}, []),
        ({"kind": "softmax", "contrastive_weight": 10.0}, {"loss": 83.2}, []),
        ({"kind": "softmax", "contrastive_weight": 10.0}, {"loss": 183.2}, ["contrastive loss, 18.3, is far above"]),
        ({"kind": "caption"}, {"loss": 16.0}, ["caption loss, 16, is far above chance (6.91)"]),
        (
            {"kind": "softmax", "caption_weight": 2.0},
            {"loss": 100.0, "contrastive_loss": 68.0, "caption_loss": 16.0},
            ["contrastive loss, 68", "caption loss, 16"],
        ),
    ],
)
def test_an_absurd_first_loss_is_told_by_its_parts(loss, metrics, found):
    told = list(absurd_first_losses(metrics, LossConfig(**loss), **BATCH, pretrained=False))
    assert len(told) == len(found)
    for text, part in zip(told, found, strict=True):
        assert part in text


def test_the_first_loss_is_that_of_the_run_and_told_once(tmp_path):
    said = []
    for first_step, expected in ((0, ["absurd"]), (2, ["absurd"])):
        watch = Watch(
            GuardConfig(), tmp_path / "bad", first_step=first_step, first_loss=lambda row: ["absurd"], say=said.append
        )
        watch.write({"step": first_step, "accuracy": 0.1})
        watch.write(row(first_step + 1))
        watch.write(row(first_step + 2))
        assert said == expected
    assert not (tmp_path / "bad").exists()
