import time

from clip_train.stall import Starvation, watched


def test_batches_that_do_not_come_are_said():
    def slow():
        for n in range(2):
            time.sleep(0.5 * n)
            yield n

    said = []
    assert list(watched(slow(), said.append, patience=0.1, share=None)) == [0, 1]
    assert said
    assert all("the data pipeline stalls" in line for line in said)


def test_starvation_is_told_within_a_window_and_again_once_it_was_over():
    said, now = [], 0.0
    starvation = Starvation(said.append, share=0.2, window=60.0)
    starvation.add(0.0, 40.0)  # the first batch: nothing was there to be prefetched

    def train(seconds, waiting):
        """Steps of a second, of which so much goes into the wait."""
        nonlocal now
        for _ in range(seconds):
            starvation.add(now, now + waiting)
            now += 1.0

    now = 40.0
    train(100, 0.1)
    assert said == []
    train(60, 0.5)
    train(60, 0.25)
    assert len(said) == 1
    assert "% of the last 60 s went into waiting for data" in said[0]
    train(100, 0.0)
    train(60, 0.3)
    assert len(said) == 2
