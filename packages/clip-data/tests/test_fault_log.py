import logging

import pytest

from clip_data import DataError
from clip_data.fault_log import FaultLog, check_counts
from clip_data.faults import Fault


def faults(count, **options):
    return [Fault(**{"shard": "s", "offset": n, "reason": "bad_image", "detail": "d", **options}) for n in range(count)]


def test_some_are_allowed_then_it_gives_up():
    log = FaultLog(max_bad_fraction=0.1)
    log.add(faults(16), num_samples=20)
    log.judge()
    log.add(faults(4), num_samples=180)
    log.judge()
    log.add(faults(1), num_samples=1)
    with pytest.raises(DataError, match=r"21 of 201 .* allows 0.1. The last one: s at byte 0: bad_image: d"):
        log.judge()


def test_a_share_is_judged_over_many_samples_and_over_whole_epochs():
    log = FaultLog(max_bad_fraction=0.1, least=1000)
    log.add(faults(100), num_samples=100)  # the first shard is bad from end to end
    log.judge()
    log.add([], num_samples=900)
    log.end_epoch("epoch 1")
    log.add(faults(100), num_samples=100)
    log.judge()
    log.add(faults(1), num_samples=1)
    with pytest.raises(DataError, match="101 of 101"):
        log.judge()


def test_what_is_not_wanted_is_no_loss_and_no_part_of_the_share():
    log = FaultLog(max_bad_fraction=0.1)
    log.add(faults(800, reason="filtered"), num_samples=1000)
    log.add(faults(20), num_samples=0)
    log.judge()
    log.add(faults(1), num_samples=0)
    with pytest.raises(DataError, match=r"21 of 200 samples could not be used \(21 bad_image, 800 filtered\)"):
        log.judge()


def test_nothing_left_at_the_end_fails_however_few():
    log = FaultLog(max_bad_fraction=1.0)
    log.add(faults(3), num_samples=3)
    log.judge()
    with pytest.raises(DataError, match=r"none of 3 samples could be used \(3 bad_image\)"):
        log.end_epoch("epoch 1")
    log = FaultLog(max_bad_fraction=1.0)
    log.add(faults(3, reason="filtered"), num_samples=3)
    with pytest.raises(DataError, match=r"none of 3 samples is wanted \(3 filtered\)"):
        log.end_epoch("epoch 1")


def test_none_is_none():
    log = FaultLog(max_bad_fraction=0.0)
    log.add(faults(50, reason="caption_not_utf8", lost=False), num_samples=50)
    log.judge()
    assert log.counts == {"caption_not_utf8": 50}
    log.add(faults(1), num_samples=1000)
    with pytest.raises(DataError, match="1 of 1050"):
        log.judge()


def test_few_of_a_kind_are_warned_about_and_an_epoch_is_summed_up(caplog):
    caplog.set_level("WARNING", "clip_data")
    log = FaultLog(max_bad_fraction=0.5)
    log.add(faults(12, key="k7"), num_samples=100)
    assert len(caplog.records) == 5
    assert "key k7" in caplog.text
    log.end_epoch("epoch 1")
    assert caplog.messages[-1] == "epoch 1: 12 of 100 samples could not be used (12 bad_image)"
    log.add(faults(12), num_samples=100)
    log.end_epoch("epoch 2")  # the same again is not said again
    assert len(caplog.records) == 6
    caplog.set_level(logging.INFO, "clip_data")
    log.add(faults(4, reason="filtered"), num_samples=100)
    log.end_epoch("epoch 3")
    assert caplog.records[-1].levelno == logging.INFO
    assert log.last_epoch == {"filtered": 4}
    assert (log.counts, log.skipped) == ({"bad_image": 24}, {"filtered": 4})


def test_the_first_process_carries_what_was_counted():
    log = FaultLog(max_bad_fraction=0.1)
    log.add([*faults(3), *faults(2, reason="filtered")], num_samples=50)
    found = check_counts(log.to_json())
    assert found == {
        "run": {"bad_image": 3, "filtered": 2},
        "epoch": {"bad_image": 3, "filtered": 2},
        "samples": 50,
        "lost": 3,
    }
    first, second = (FaultLog(max_bad_fraction=0.1, process_index=i, process_count=2) for i in range(2))
    for part in (first, second):
        part.start(faults(1, lost=False))
        part.from_json(found)
    assert first.to_json() == found
    assert second.counts == second.skipped == {}


@pytest.mark.parametrize(
    "wrong", [None, {}, {"run": {}, "epoch": {}, "samples": -1, "lost": 0}, {"run": {"x": 1}, "epoch": {}}]
)
def test_refuses_what_are_no_counts(wrong):
    with pytest.raises(ValueError, match="a cursor's counts must be"):
        check_counts(wrong)
