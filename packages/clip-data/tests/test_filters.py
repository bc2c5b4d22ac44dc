import itertools

import numpy as np
import pytest

from clip_data import DataConfig, DataError, Filter, Pipeline, SourceConfig, filters, read_records
from clip_data.filters import filters_identity, make_predicate
from clip_data.tfrecord import write_examples


def wanted(filters, metadata, image=b""):
    return make_predicate([filters] if isinstance(filters, Filter) else filters)(metadata, image) is None


@pytest.mark.parametrize(
    ("condition", "kept", "dropped"),
    [
        ({"min": 0.28}, [0.28, 1, "0.3", b"0.3"], [0.27, "x", None, float("nan"), ""]),
        ({"max": 3}, [3, -1, -(10**400)], [3.5, 10**400]),
        ({"min": 1, "max": 2}, [1, 2], [0, 3]),
        ({"one_of": ("en", 5)}, ["en", b"en", 5, "5"], ["de", None]),
        ({"none_of": ("nsfw",)}, ["sfw", b"sfw"], ["nsfw", b"nsfw", None]),
        ({"max": 3, "missing": "keep"}, [None, "", "x", 2], [4]),
    ],
)
def test_conditions(condition, kept, dropped):
    for value, expected in [*zip(kept, itertools.repeat(True)), *zip(dropped, itertools.repeat(False))]:
        assert wanted(Filter(column="c", **condition), {"c": value}) is expected, value
    assert wanted(Filter(column="c", **condition), {}) is (condition.get("missing") == "keep")


def test_derived_columns(encode):
    side, ratio = Filter(column="smallest_side", min=200), Filter(column="aspect_ratio", max=3)
    assert wanted([side, ratio], {"original_width": 600, "original_height": 200, "width": 10, "height": 10})
    assert not wanted(ratio, {"original_width": 601, "original_height": 200})
    assert wanted(side, {"original_width": None, "original_height": None, "width": 200, "height": 201})
    assert not wanted(side, {"original_width": b"", "width": 199, "height": 500})
    assert wanted([Filter(column="smallest_side", min=8), ratio], {}, encode(size=(24, 8)))
    assert not wanted(Filter(column="smallest_side", min=9), {}, encode(size=(24, 8)))
    assert not wanted(side, {}, b"<html>")
    assert not wanted(side, {"smallest_side": 3, "width": 300, "height": 300})
    assert not wanted(ratio, {"width": 10**400, "height": 10**400})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "needs one of min, max"),
        ({"min": 2, "max": 1}, "min must not exceed max for 'c'; they are 2 and 1"),
        ({"min": float("nan")}, "NaN"),
        ({"one_of": "en"}, "one_of of 'c' must be a list of texts or numbers, not 'en'"),
        ({"none_of": 5}, "none_of of 'c' must be a list"),
        ({"one_of": [None]}, r"must be a list of texts or numbers, not \(None,\)"),
        ({"min": "3"}, "min of 'c' must be a number, not '3'"),
        ({"max": True}, "max of 'c' must be a number, not True"),
        ({"uids": 5}, "uids of 'c' must be the path of a .npy file, not 5"),
        ({"column": 5, "min": 1}, "column must be a field's name, not 5"),
        ({"min": 1, "missing": "x"}, "drop or keep, not 'x'"),
        ({"column": "", "min": 1}, "not ''"),
    ],
)
def test_filter_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        Filter(**{"column": "c", **wrong})


def test_uids(tmp_path, monkeypatch):
    uids = [f"{n:032x}" for n in (3, 7 << 64, (9 << 64) + 5, (1 << 128) - 1)]
    np.save(tmp_path / "u.npy", np.array([(int(u[:16], 16), int(u[16:], 16)) for u in uids], "u8,u8"))
    keep = Filter(column="uid", uids=str(tmp_path / "u.npy"))
    monkeypatch.setattr(filters, "_UIDS_AT_ONCE", 2)
    assert all(wanted(keep, {"uid": uid}) and wanted(keep, {"uid": uid.encode()}) for uid in uids)
    assert not any(wanted(keep, {"uid": uid}) for uid in (f"{4:032x}", f"{9 << 64:032x}", "f" * 16, "no uid", 3, None))


def test_a_file_of_uids_is_known_by_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "_UIDS_AT_ONCE", 1000)
    uids = np.zeros(5000, "u8,u8")
    uids["f0"] = np.arange(5000) * 2
    words = []
    for name, uid in (("a", 4000), ("b", 4001), ("c", 3)):
        changed = uids.copy()
        changed["f0"][2000] = uid
        np.save(tmp_path / f"{name}.npy", changed)
        keep = [Filter(column="uid", uids=str(tmp_path / f"{name}.npy"))]
        if name == "c":
            with pytest.raises(ValueError, match="must be sorted"):
                filters_identity(keep)
        else:
            words.append(filters_identity(keep))
    assert words[0] != words[1]


def test_files_that_hold_no_uids(tmp_path):
    pairs = np.array([(2, 0), (1, 0)], "u8,u8")
    np.save(tmp_path / "unsorted.npy", pairs)
    np.save(tmp_path / "floats.npy", np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name, message in {
        "unsorted": "must be sorted",
        "floats": r"dtype 'u8,u8', not float64 \[3\]",
        "pickle": "cannot be read",
        "text": "cannot be read",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_predicate([Filter(column="uid", uids=str(tmp_path / f"{name}.npy"))])
    with pytest.raises(FileNotFoundError):
        make_predicate([Filter(column="uid", uids=str(tmp_path / "none.npy"))])


@pytest.fixture
def filtered(tmp_path, examples):
    def filtered(*filters, **options):
        for shard in range(3):
            write_examples(tmp_path / f"{shard}.tfrecord", examples(shard * 20, shard * 20 + 20))
        source = SourceConfig(format="tfrecord", shards=str(tmp_path / "*.tfrecord"), filters=filters)
        options = {"image_size": 8, "tokenizer": None, "text_length": 1, "block_shards": 2, **options}
        return DataConfig(sources=(source,), max_bad_fraction=0.0, **options)

    return filtered


ODD = Filter(column="label", one_of=tuple(range(1, 60, 2)))


def test_the_filtered_are_replaced_the_same_way_everywhere(filtered):
    def run(threads, count, skip=0):
        pipelines = [
            Pipeline(filtered(ODD, num_threads=threads), global_batch_size=12, process_index=i, process_count=count)
            for i in range(count)
        ]
        rows = []
        for pipeline in pipelines:
            pipeline.seek({**pipeline.cursor(), "position": 12 * skip})
        for _ in range(8 - skip):
            rows.append([label for pipeline in pipelines for label in next(pipeline).label])
        for pipeline in pipelines:
            assert pipeline.faults == {}
            assert pipeline.skipped["filtered"] > 0
            pipeline.close()
        return rows

    expected = run(2, 1)
    assert all(label % 2 for row in expected for label in row)
    assert run(1, 1) == run(1, 3) == expected
    assert run(2, 1, skip=5) == expected[5:]


def test_read_records_and_evaluation_leave_out_the_filtered(filtered):
    config = filtered(ODD, shuffle=False, num_epochs=1)
    assert [record.label for record in read_records(config.sources[0])] == list(range(1, 60, 2))
    with Pipeline(config, global_batch_size=10) as pipeline:
        assert [label for batch in pipeline for label in batch.label[batch.mask]] == list(range(1, 60, 2))
        assert (pipeline.faults, pipeline.skipped) == ({}, {"filtered": 30})


def test_rare_records_are_found_and_none_at_all_fails_at_once(filtered):
    with Pipeline(filtered(Filter(column="label", one_of=(17,))), global_batch_size=6) as pipeline:
        assert {int(label) for batch in itertools.islice(pipeline, 4) for label in batch.label} == {17}
    with (
        Pipeline(filtered(Filter(column="nolabel", min=3)), global_batch_size=6) as pipeline,
        pytest.raises(DataError, match=r"leave next to nothing.*no nolabel; the fields are key"),
    ):
        next(pipeline)
    none = filtered(Filter(column="label", min=99), shuffle=False, num_epochs=1)
    with (
        Pipeline(none, global_batch_size=6) as pipeline,
        pytest.raises(DataError, match=r"none of 60 samples is wanted \(60 filtered\)"),
    ):
        list(pipeline)


def test_a_cursor_knows_its_filters(filtered, tmp_path):
    with Pipeline(filtered(ODD), global_batch_size=6) as pipeline:
        cursor = pipeline.cursor()
    with Pipeline(filtered(ODD), global_batch_size=6) as pipeline:
        pipeline.seek(cursor)
    with Pipeline(filtered(), global_batch_size=6) as pipeline, pytest.raises(ValueError, match="filters was"):
        pipeline.seek(cursor)
    subset = Filter(column="uid", uids=str(tmp_path / "u.npy"))
    np.save(tmp_path / "u.npy", np.array([(1, 0), (2, 0)], "u8,u8"))
    with Pipeline(filtered(subset), global_batch_size=6) as pipeline:
        assert pipeline.cursor()["filters"] != cursor["filters"]
