import dataclasses
import json
from typing import Literal

import pydantic
import pytest

from clip_train.config_file import ConfigError, config_to_json, parse_config, read_config, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is ≥ 0; got {self.rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    output_dir: str
    inner: Inner = Inner()
    other: Inner = Inner(kind="linear")
    items: tuple[Inner, ...] = ()
    tokenizer: str | None = None
    seed: int = 0


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "config.json"
        file.write_text(text if isinstance(text, str) else json.dumps(text))
        return file

    return write


def test_comments_schema_key_and_paths_relative_to_the_file(write, tmp_path):
    (tmp_path / "words").mkdir()
    text = """{
      "$schema": "schema.json",   // for the editor
      "output_dir": "runs/a", // not "here"
      "tokenizer": "words", "items": [{"rate": 1}]
    }"""
    config = read_config(Outer, write(text))
    assert config.output_dir == str(tmp_path / "runs/a")
    assert config.tokenizer == str(tmp_path / "words")
    assert config.items == (Inner(rate=1.0),)


def test_names_and_addresses_are_no_paths(write):
    config = read_config(Outer, write({"output_dir": "gs://bucket/run", "tokenizer": "google/siglip"}))
    assert (config.output_dir, config.tokenizer) == ("gs://bucket/run", "google/siglip")


def test_set_overrides_any_field_and_takes_paths_from_the_working_directory(write, tmp_path, monkeypatch):
    file = write({"output_dir": "a", "items": [{"rate": 1}, {"rate": 2}]})
    monkeypatch.chdir(tmp_path.parent)
    overrides = ["output_dir=b", "inner.kind=linear", "items.1.rate=3", "seed=7"]
    config = read_config(Outer, file, overrides)
    assert config.output_dir == str(tmp_path.parent / "b")
    assert (config.inner.kind, config.items[1].rate, config.seed) == ("linear", 3.0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"innner": {}}, "innner: unknown key. Did you mean 'inner'?"),
        ({"inner": {"rat": 1}}, "inner.rat: unknown key. Did you mean 'rate'?"),
        ({"items": [{}, {"zzz": 1}]}, "items.1.zzz: unknown key. Valid here: kind, rate."),
        ({"inner": {"kind": "cosin"}}, "inner.kind: must be 'cosine' or 'linear'; got 'cosin'. Did you mean 'cosine'?"),
        ({"inner": {"rate": -1}}, "inner: rate is ≥ 0; got -1.0"),
        ({"seed": "many"}, "seed: must be a valid integer, unable to parse string as an integer; got 'many'"),
        ({"output_dir": None}, "output_dir: must be a valid string; got None"),
    ],
)
def test_a_fault_is_one_line_with_its_path_and_the_nearest_choice(write, change, message):
    with pytest.raises(ConfigError) as error:
        read_config(Outer, write({"output_dir": "a", **change}))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"output_dir": "a",\n "seed": }', "line 2, column 10"),
        ("[1]", "a config is a JSON object"),
        ("{}", "output_dir: required, and missing"),
    ],
)
def test_broken_files_say_where(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(Outer, write(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed", "takes path=value"), ("items.4.rate=1", "must be the number of a list item"), ("seed.x=1", "is a value")],
)
def test_broken_overrides_are_named(write, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(Outer, write({"output_dir": "a", "items": [{}], "seed": 1}), [override])


def test_one_field_of_a_part_leaves_the_others_as_they_are_by_default():
    assert parse_config(Outer, {"output_dir": "x", "other": {"rate": 0.1}}).other == Inner(rate=0.1, kind="linear")
    assert parse_config(Outer, {"output_dir": "x", "other": {"kind": "cosine"}}).other == Inner(kind="cosine")


def test_a_config_comes_back_from_json():
    config = Outer(output_dir="/a", items=(Inner(rate=2.0),))
    assert parse_config(Outer, json.loads(json.dumps(config_to_json(config)))) == config


def test_the_schema_refuses_unknown_keys():
    made = schema(Outer)
    assert made["additionalProperties"] is False
    assert made["required"] == ["output_dir"]
