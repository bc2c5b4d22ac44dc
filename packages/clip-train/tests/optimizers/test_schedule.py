import numpy as np
import pytest

from clip_train.optimizers import ScheduleConfig, make_schedule, to_samples, to_steps


def rates(steps, **options):
    config = {name: options.pop(name) for name in ("decay", "end_fraction") if name in options}
    schedule = make_schedule(ScheduleConfig(**config), peak=2.0, num_steps=100, **options)
    return np.array([schedule(step) for step in steps])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay": "linear"}, [0, 0, 1, 2, 1.25, 0.5, 0.25]),
        (
            {"decay": "cosine"},
            [0, 0, 1, 2, 1 + np.cos(np.pi * 30 / 80), 1 + np.cos(np.pi * 0.75), 1 + np.cos(np.pi * 70 / 80)],
        ),
        ({"decay": "constant"}, [0, 0, 1, 2, 2, 2, 2]),
        ({"decay": "exponential", "end_fraction": 0.01}, [0, 0, 1, 2, *(2 * 0.01 ** (np.array([30, 60, 70]) / 80))]),
        ({"decay": "rsqrt"}, [0, 0, 1, 2, *(2 / np.sqrt(1 + np.array([30, 60, 70]) / 10))]),
        ({"decay": "rsqrt", "timescale_steps": 30}, [0, 0, 1, 2, *(2 / np.sqrt(1 + np.array([30, 60, 70]) / 30))]),
        ({"decay": "constant", "cooldown_steps": 20}, [0, 0, 1, 2, 2, 2, 1]),
        ({"decay": "linear", "end_fraction": 0.5, "cooldown_steps": 20}, [0, 0, 1, 2, 1.5, 1, 0.5]),
        ({"decay": "linear", "staircase_steps": 20}, [0, 0, 1, 2, 1.5, 0.5, 0.5]),
        (
            {"decay": "exponential", "end_fraction": 0.01, "staircase_steps": 40},
            [0, 0, 1, 2, 2, 2 * 0.01**0.5, 2 * 0.01**0.5],
        ),
    ],
)
def test_shapes(options, expected):
    found = rates([0, 10, 15, 20, 50, 80, 90], offset_steps=10, warmup_steps=10, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "steps"),
    [(7, 7), ("7 steps", 7), ("320 samples", 10), ("1 sample", 0), ("2.5 epochs", 25), ("1 epoch", 10), ("3%", 6)],
)
def test_a_length_is_a_number_of_steps(length, steps):
    assert to_steps(length, num_steps=200, global_batch_size=32, samples_per_epoch=320) == steps


def test_a_run_is_as_long_as_its_samples():
    assert to_samples(5000, samples_per_epoch=None) == to_samples("5000 samples", samples_per_epoch=None) == 5000
    assert to_samples("2.5 epochs", samples_per_epoch=320) == 800
    with pytest.raises(ValueError, match="an epoch has no size; got '2 epochs'"):
        to_samples("2 epochs", samples_per_epoch=None)
    with pytest.raises(ValueError, match=r"in samples or epochs .* got '5%'"):
        to_samples("5%", samples_per_epoch=320)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="60 steps of warm-up, 30 of offset, 20 of cooldown in a run of 100"):
        rates([0], warmup_steps=60, offset_steps=30, cooldown_steps=20)
    with pytest.raises(ValueError, match="timescale of a decay rsqrt"):
        rates([0], decay="rsqrt", warmup_steps=0)
    with pytest.raises(ValueError, match=r"end_fraction .* above 0"):
        ScheduleConfig(decay="exponential")
    with pytest.raises(ValueError, match="cooldown is a number of steps"):
        ScheduleConfig(cooldown="soon")
