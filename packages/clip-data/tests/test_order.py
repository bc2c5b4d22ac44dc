from collections import Counter

import pytest

from clip_data.order import Order

COUNTS = [[3, 0, 5, 2, 4, 1, 6]]
TOTAL = 21
FROZEN = [(0, 0), (4, 0), (4, 2), (0, 1), (0, 2), (4, 1), (4, 3), (2, 1)]


def take(order, first, last):
    return [order(position) for position in range(first, last)]


def make(counts=COUNTS, weights=(1.0,), **options):
    return Order(counts, weights, **{"seed": 0, "shuffle": True, "block_shards": 2, **options})


def test_an_epoch_is_every_record_once_and_epochs_differ():
    order = make()
    everything = {(0, shard, row) for shard, count in enumerate(COUNTS[0]) for row in range(count)}
    epochs = [take(order, epoch * TOTAL, (epoch + 1) * TOTAL) for epoch in range(3)]
    for epoch in epochs:
        assert len(epoch) == TOTAL
        assert set(epoch) == everything
    assert epochs[0] != epochs[1] != epochs[2]


def test_any_position_at_any_time_in_any_instance():
    forward = take(make(), 0, 3 * TOTAL)
    backward = take(make(), 0, 0) + [make()(position) for position in reversed(range(3 * TOTAL))]
    assert forward == backward[::-1]
    assert forward != take(make(seed=1), 0, 3 * TOTAL)


def test_the_order_never_changes():
    # Frozen: another order would break the resumption of runs made with this version.
    assert [place[1:] for place in take(make(), 0, 8)] == FROZEN


def test_blocks_hold_two_shards():
    order = make()
    shards = [place.shard for place in take(order, 0, TOTAL)]
    seen = list(dict.fromkeys(shards))
    for block in range(0, 6, 2):
        size = sum(COUNTS[0][shard] for shard in seen[block : block + 2])
        assert set(shards[:size]) == set(seen[block : block + 2])
        del shards[:size]


def test_sources_mix_by_weight_and_evenly():
    order = make([[50], [1000]], (3.0, 1.0))
    for first in (0, 4096 * 3 + 17):
        counts = Counter(place.source for place in take(order, first, first + 400))
        assert abs(counts[0] - 300) <= 1
    # Each source is still gone through record by record.
    rows = [place.row for place in take(order, 0, 4000) if place.source == 1]
    assert sorted(rows[:1000]) == list(range(1000))


def test_a_tiny_weight_is_not_lost():
    places = take(make([[5], [5], [5]], (1.0, 1e-9, 1.0)), 0, 4096)
    assert Counter(place.source for place in places)[1] == 1


def test_evaluation_puts_sources_one_after_the_other():
    order = make([[2], [1, 2]], (1.0, 9.0), shuffle=False, concatenate=True)
    assert take(order, 0, 5) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)]


def test_replacements_stay_in_the_block_then_leave_it():
    order = make(block_shards=1)
    for position in range(TOTAL):
        here = order(position).shard
        near = {order.replacement(position, attempt).shard for attempt in range(1, 9)}
        far = {order.replacement(position, attempt).shard for attempt in range(9, 60)}
        assert near == {here}
        assert len(far) > 3
    assert order.replacement(3, 1) == make(block_shards=1).replacement(3, 1)


def test_refuses_an_empty_source():
    with pytest.raises(ValueError, match="source 1 holds none"):
        make([[1], [0, 0]], (1.0, 1.0))
