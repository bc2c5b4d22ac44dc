import random

import pytest

from clip_data import example
from clip_data.example import encode_example, parse_example
from clip_data.faults import RecordError

FIELDS = {
    "key": b"7",
    "webp": bytes(range(256)) * 20,
    "empty": b"",
    "words": [b"a", b""],
    "ints": [-1, 0, 2**62, -(2**63)],
}
FIELDS |= {"floats": [0.5, -1.25], "txt": "sch\u00f6n"}


def test_parses_unpacked_numbers():
    ints = b"\x1a\x04\x08\x05\x08\x06"  # an Int64List of 5 and 6, each with a tag of its own
    floats = b"\x12\x05\x0d\x00\x00\x00\x3f"  # a FloatList of 0.5

    def feature_map(name, feature):
        entry = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(entry)]) + entry

    body = feature_map(b"i", ints) + feature_map(b"f", floats)
    assert parse_example(b"\x0a" + bytes([len(body)]) + body) == {"i": [5, 6], "f": [0.5]}


def test_both_parsers_agree():
    def same(data):
        try:
            expected = example._parse_any(data)
        except RecordError:
            with pytest.raises(RecordError):
                parse_example(data)
            return
        assert repr(parse_example(data)) == repr(expected)  # NaN is itself

    whole = encode_example({**FIELDS, "long" * 30: b"x" * 300, "none": None, "nothing": []})
    assert example._parse_plain(whole) == example._parse_any(whole)
    draw = random.Random(0)
    for _ in range(3000):
        data = bytearray(whole[:400] + whole[-500:] if draw.random() < 0.5 else whole)
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(len(data))] = draw.choice(
                (0, 1, 0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF, draw.randrange(256))
            )
        same(bytes(data))


def test_bytes_that_are_no_example():
    whole = encode_example({"key": b"7"})
    for data in (whole[:-1], b"\xff" * 12, b"<html></html>"):
        with pytest.raises(RecordError, match="bad_record"):
            parse_example(data)


def test_refuses_other_types():
    with pytest.raises(TypeError, match="field 'a' must be bytes"):
        encode_example({"a": [object()]})
