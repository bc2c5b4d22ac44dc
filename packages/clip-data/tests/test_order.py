import itertools
from collections import Counter

import pytest

from clip_data.order import Order

COUNTS = [[3, 0, 5, 2, 4, 1, 6]]
TOTAL = 21
FROZEN = [(0, 0), (2, 3), (0, 2), (2, 4), (0, 1), (3, 1), (4, 1), (3, 0)]


def take(order, first, last):
    return [order(position) for position in range(first, last)]


def make(counts=COUNTS, weights=(1.0,), **options):
    return Order(counts, weights, **{"seed": 0, "shuffle": True, "block_shards": 2, "num_streams": 2, **options})


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
    order = make(num_streams=1)
    shards = [place.shard for place in take(order, 0, TOTAL)]
    seen = list(dict.fromkeys(shards))
    for block in range(0, 6, 2):
        size = sum(COUNTS[0][shard] for shard in seen[block : block + 2])
        assert set(shards[:size]) == set(seen[block : block + 2])
        del shards[:size]


def test_sources_mix_by_weight_and_evenly():
    order = make([[50], [1000]], (3.0, 1.0), num_streams=4)
    for first in (0, 4096 * 3 + 17):
        counts = Counter(place.source for place in take(order, first, first + 400))
        assert abs(counts[0] - 300) <= 1
    # Each source is still gone through record by record.
    rows = [place.row for place in take(order, 0, 4000) if place.source == 1]
    assert sorted(rows[:1000]) == list(range(1000))


def test_more_sources_than_a_cycle_usually_has():
    order = make([[1]] * 5000, [1.0] * 5000, num_streams=1)
    assert len({place.source for place in take(order, 0, 8192)}) == 5000


def test_a_tiny_weight_is_not_lost():
    places = take(make([[5], [5], [5]], (1.0, 1e-9, 1.0)), 0, 4096)
    assert Counter(place.source for place in places)[1] == 1


def test_evaluation_puts_sources_one_after_the_other():
    order = make([[2], [1, 2]], (1.0, 9.0), shuffle=False, concatenate=True)
    assert take(order, 0, 5) == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert take(order, 5, 10) == take(order, 0, 5)


@pytest.mark.parametrize(("num_streams", "block_shards"), [(1, 1), (2, 2), (4, 4), (3, 7), (8, 30)])
def test_every_epoch_is_whole_whatever_the_streams(num_streams, block_shards):
    counts = [[3, 0, 5, 2, 4, 1, 6, 11, 2, 2, 7, 3]]
    order = make(counts, block_shards=block_shards, num_streams=num_streams)
    total = sum(counts[0])
    everything = [(0, shard, row) for shard, count in enumerate(counts[0]) for row in range(count)]
    for epoch in range(3):
        assert sorted(take(order, epoch * total, (epoch + 1) * total)) == everything


def test_a_process_reads_from_its_streams_alone():
    order = make([[10] * 64], block_shards=8, num_streams=8)
    seen = [set() for _ in range(4)]
    for start in range(0, 8 * 20, 40):  # half a stream each
        rows = order.rows(start, 40)
        assert sorted(rows) == list(range(start, start + 40))
        for process in range(4):
            seen[process] |= {order(n).shard for n in rows[process * 10 : (process + 1) * 10]}
    assert [len(shards) for shards in seen] == [4] * 4
    assert len(set.union(*seen)) == 16


@pytest.mark.parametrize("num_streams", [1, 2, 4])
def test_what_follows_a_block(num_streams):
    order = make([[4, 3, 5, 2, 6, 4, 4, 5, 3, 7]], block_shards=num_streams, num_streams=num_streams)
    for lane in range(num_streams):
        shards = [order(n).shard for n in range(lane, 3 * 43, num_streams)]
        for n, (here, there) in enumerate(itertools.pairwise(shards)):
            assert there == here or there in order.following(lane + n * num_streams)[1].shards


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ([[4, 3, 5, 2, 6, 4]], {"num_streams": 2}),
        ([[4, 3, 5], [9, 2]], {"concatenate": True, "shuffle": False}),
        ([[40, 30, 50, 9], [90, 7, 6, 5]], {"num_streams": 2}),
    ],
)
def test_a_block_ends_after_its_last_sample(counts, options):
    order = make(counts, (3.0, 1.0)[: len(counts)], **options)
    last, total = {}, 3 * sum(map(sum, counts))
    for position in range(total):
        place, end = order.locate(position)
        assert place == order(position)
        last[place.source, end] = position
    ended = [(end, position) for (_, end), position in last.items() if end <= total]
    assert len(ended) > 5
    assert all(end == position + 1 for end, position in ended)


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
