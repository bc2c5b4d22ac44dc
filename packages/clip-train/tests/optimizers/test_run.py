import pytest

from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, config_to_json, read_config
from clip_train.run import run


def test_a_pattern_that_matches_nothing_names_its_place_in_the_config(squares, tmp_path):
    wrong = [f"output_dir={tmp_path / 'run'}", 'optimizer.parameters=[{"match": "vison", "frozen": true}]']
    with pytest.raises(ConfigError, match=r"optimizer: no parameter is matched by 'vison'.* vision"):
        run(read_config(TrainConfig, squares / "config.json", wrong))


def test_every_kind_comes_back_from_the_resolved_config(squares):
    for kind in ("adamw", "adafactor", "lion", "muon", "distributed_shampoo"):
        config = read_config(TrainConfig, squares / "config.json", [f"optimizer.kind={kind}"])
        assert config.optimizer.kind == kind
        assert config_to_json(config)["optimizer"]["kind"] == kind
