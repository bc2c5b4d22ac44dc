"""The linear probe beside CLIP_benchmark's `linear_probe.py` (1.6.2, PyTorch 2.13)."""

import numpy as np
import pytest

from clip_train.probe import ProbeConfig, fit_probe, peak, probe_logits


def test_a_probe_learns_what_clip_benchmarks_does():
    """Expected: its own `train`, from the same first weights and on the same batches."""
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    labels = features[:, :3].argmax(axis=1)
    config = ProbeConfig(epochs=4, batch_size=16)
    probe = fit_probe(features, labels, config, num_classes=3, weight_decay=0.1)
    expected = [
        [-0.2397034913301468, -0.6192684769630432, 0.09703019261360168],
        [1.0555572509765625, 0.18140092492103577, -0.159112349152565],
        [0.6513762474060059, -0.1031527891755104, 0.30155009031295776],
    ]
    np.testing.assert_allclose(probe_logits(probe, features[:3]), expected, atol=1e-5)


@pytest.mark.parametrize("num_values", [3, 10, 1000])
def test_the_sweep_ends_where_clip_benchmarks_ends_through_ties(num_values):
    def find_peak(indices):  # its function of this name, without the training
        best, most = 0, 0
        for index in indices:
            if most < scores[index]:
                best, most = index, scores[index]
        return best

    rng = np.random.default_rng(num_values)
    for _ in range(50):
        scores = (1 + rng.integers(0, num_values, 97)).tolist()
        expected, span = find_peak(range(0, 97, 16)), 8
        while span > 0:
            expected = find_peak([max(expected - span, 0), expected, min(expected + span, 96)])
            span //= 2
        assert peak(scores.__getitem__) == expected
