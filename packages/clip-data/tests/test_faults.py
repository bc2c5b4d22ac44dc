import pytest

from clip_data import DataError
from clip_data.faults import Fault, FaultLog


def faults(count, **options):
    return [Fault(**{"shard": "s", "offset": n, "reason": "bad_image", "detail": "d", **options}) for n in range(count)]


def test_some_are_allowed_then_it_gives_up():
    log = FaultLog(max_bad_fraction=0.1)
    log.add(faults(16), num_samples=20)
    log.add(faults(4), num_samples=180)
    with pytest.raises(DataError, match=r"21 of 201 .* allows 0.1. The last one: s at byte 0: bad_image: d"):
        log.add(faults(1), num_samples=1)


def test_all_lost_fails_at_once():
    with pytest.raises(DataError, match="3 of 3"):
        FaultLog(max_bad_fraction=1.0).add(faults(3), num_samples=3)


def test_faults_without_loss_only_count():
    log = FaultLog(max_bad_fraction=0.0)
    log.add(faults(50, reason="caption_not_utf8", lost=False), num_samples=50)
    assert log.counts == {"caption_not_utf8": 50}


def test_few_of_a_kind_are_warned_about(caplog):
    caplog.set_level("WARNING", "clip_data")
    FaultLog(max_bad_fraction=0.5).add(faults(12, key="k7"), num_samples=100)
    assert len(caplog.records) == 5
    assert "key k7" in caplog.text
