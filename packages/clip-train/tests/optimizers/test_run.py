import jax
import numpy as np
import pytest

from clip_models import init
from clip_train.checkpoint import Checkpoints
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, config_to_json, read_config
from clip_train.run import run
from clip_train.weights import load_run

OPTIONS = [
    "train_samples=64",
    'optimizer.parameters=[{"match": "vision", "frozen": true}]',
    "evaluation=[]",
    'ema={"decay": 0.5}',
    'schedule={"warmup": 1, "cooldown": "25%", "decay": "rsqrt"}',
]


def test_a_run_with_a_frozen_tower_gives_away_its_averages(squares, tmp_path):
    options = [*OPTIONS, f"output_dir={tmp_path / 'run'}"]
    config = read_config(TrainConfig, squares / "config.json", options)
    assert run(config) == 0
    model, params = load_run(tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params)
        raw = checkpoints.restore_params(shapes)
    first = jax.jit(lambda: init(model, jax.random.key(config.seed)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params["vision"], first["vision"])
    jax.tree.map(np.testing.assert_array_equal, params["vision"], raw["vision"])
    # Half way between where they are and where they were.
    for of in (lambda tree: tree["text"]["token_embedding"], lambda tree: tree["logit_scale"]):
        assert 0 < np.abs(of(params) - of(raw)).max() < np.abs(of(first) - of(raw)).max()


def test_a_pattern_that_matches_nothing_names_its_place_in_the_config(squares, tmp_path):
    wrong = [*OPTIONS, f"output_dir={tmp_path / 'run'}", "optimizer.parameters.0.match=vison"]
    with pytest.raises(ConfigError, match=r"optimizer: no parameter is matched by 'vison'.* vision"):
        run(read_config(TrainConfig, squares / "config.json", wrong))


def test_every_kind_comes_back_from_the_resolved_config(squares):
    for kind in ("adamw", "adafactor", "lion", "muon", "distributed_shampoo"):
        config = read_config(TrainConfig, squares / "config.json", [f"optimizer.kind={kind}"])
        assert config.optimizer.kind == kind
        assert config_to_json(config)["optimizer"]["kind"] == kind
