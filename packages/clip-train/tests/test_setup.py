"""What a config comes to: its first weights, and its lengths in steps."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_models import init, save_pretrained
from clip_train import TrainConfig
from clip_train.config_file import ConfigError, config_to_json, parse_config, read_config
from clip_train.run import start
from clip_train.screen import make_console
from clip_train.setup import prepare, resolve

NO_CHECKPOINT = SimpleNamespace(latest_step=lambda: None)


@pytest.fixture(scope="module")
def models(squares):
    """Two models of one architecture, whose arrays are all their own: `first` and `second`."""
    resolved, _ = resolve(read_config(TrainConfig, squares / "config.json"))
    model = dataclasses.replace(resolved.model.config, logit_bias_init=-16.5, logit_scale_init=4.75)
    params = {}
    for seed, name in enumerate(("first", "second"), start=1):
        random = init(model, jax.random.key(seed))
        params[name] = jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf) + seed / 8, random)
        save_pretrained(squares / name, model, params[name])
    return params


def begin(squares, *changes):
    """The first parameters of a run, its bias and scale apart; and its resolved config."""
    config = read_config(TrainConfig, squares / "config.json", ["output_dir=none", "evaluation=[]", *changes])
    setup = prepare(*resolve(config))
    with setup.pipeline, contextlib.redirect_stdout(None):
        state, step = start(setup, NO_CHECKPOINT, setup.pipeline, make_console())
    assert step == 0
    return jax.tree.map(np.asarray, state.params), setup.config


def is_same(ours, theirs):
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)]
    return all(same)


def pretrained(squares, **more):
    return f"model={json.dumps({'pretrained': str(squares / 'first'), **more})}"


def test_weights_come_from_where_the_config_says(squares, models):
    first, second = models["first"], models["second"]
    params, config = begin(squares, pretrained(squares), "optimizer={}")
    assert is_same(params, first)
    assert config.optimizer.learning_rate == 1e-5
    changed = pretrained(squares, image_tower=str(squares / "second"), reinitialize=["text", "logit_bias"])
    params, config = begin(squares, changed)
    assert is_same(params["vision"], second["vision"])
    pairs = zip(jax.tree.leaves(params["text"]), jax.tree.leaves(first["text"]), strict=True)
    assert not any(np.array_equal(drawn, loaded) for drawn, loaded in pairs)
    assert params["logit_scale"] == first["logit_scale"]
    assert params["logit_bias"] == pytest.approx(-np.log(15))
    with pytest.raises(ConfigError, match="loss: this model has a logit bias"):
        begin(squares, pretrained(squares), "loss.kind=softmax")
    params, _ = begin(squares, pretrained(squares), 'loss={"kind": "softmax", "force": true}')
    assert "logit_bias" not in params
    assert np.exp(params["logit_scale"]) == pytest.approx(1 / 0.07)
    assert is_same(params["text"], first["text"])


@pytest.mark.parametrize(
    ("changes", "scale", "bias"),
    [
        ([], 10.0, -np.log(15)),
        (["model.config.logit_bias_init=-3", "model.config.logit_scale_init=1"], np.exp(1.0), -3.0),
        (["global_batch_size=96"], 10.0, -np.log(95)),
        (["model.config.logit_bias_init=null"], 1 / 0.07, None),
    ],
)
def test_from_scratch_scale_and_bias_are_those_of_loss_and_batch_unless_they_were_chosen(squares, changes, scale, bias):
    config, _ = resolve(read_config(TrainConfig, squares / "config.json", changes))
    model = config.model.config
    assert np.exp(model.logit_scale_init) == pytest.approx(scale)
    assert model.logit_bias_init == (None if bias is None else pytest.approx(bias))
    again, _ = resolve(parse_config(TrainConfig, config_to_json(config)))
    assert again == config
