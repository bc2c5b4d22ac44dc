"""Classifiers of transformers, made and run in PyTorch by fixtures/make_fixtures.py."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from clip_finetune import load_classifier
from clip_finetune.backbone import tower_features
from clip_finetune.classifier import Classifier

safetensors = pytest.importorskip("safetensors.numpy")
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_pytorchs_classifier_is_opened_and_written_as_it_was(kind, tmp_path):
    classifier, params = load_classifier(FIXTURES / kind)
    assert classifier.classnames == ("red", "blue", "neither")
    with np.load(FIXTURES / kind / "golden.npz") as golden:
        answers = dict(golden)
    expected = {name: answers.pop(name) for name in ("logits", "mean", "pooled")}

    @jax.jit
    def run(params, inputs):
        features = [tower_features(classifier.config, params, inputs, name) for name in ("mean", "pooled")]
        return [*features, classifier.logits_of_inputs(params, inputs)]

    mean, pooled, logits = run(params, answers)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    np.testing.assert_allclose(mean, expected["mean"], atol=1e-5)
    unit = expected["pooled"] / np.linalg.norm(expected["pooled"], axis=-1, keepdims=True)
    np.testing.assert_allclose(pooled, unit, atol=1e-5)

    assert classifier.save(tmp_path / "saved", params).endswith("ForImageClassification")
    saved, original = (
        safetensors.load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", FIXTURES / kind)
    )
    assert saved.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
    written, given = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "saved", FIXTURES / kind)
    )
    for name in ("architectures", "model_type", "id2label", "label2id", "problem_type"):
        assert written[name] == given[name]
    tower = given["vision_config"]
    assert {name: value for name, value in written["vision_config"].items() if tower.get(name, value) != value} == {}


def test_what_transformers_has_no_class_for_is_saved_in_our_format(tmp_path):
    classifier, params = load_classifier(FIXTURES / "siglip")
    pooled = Classifier(classifier.config, classifier.classnames, "pooled")
    assert "this one has pooled" in pooled.save(tmp_path, params)
    again, read = load_classifier(tmp_path)
    assert again == pooled
    np.testing.assert_array_equal(read["head"]["kernel"], params["head"]["kernel"])


def test_a_tower_that_transformers_cannot_express_is_refused(tmp_path):
    from dataclasses import replace

    classifier, _ = load_classifier(FIXTURES / "siglip")
    odd = replace(classifier.config, vision=replace(classifier.config.vision, num_registers=2))
    assert "num_registers" in Classifier(odd, ("a", "b"), "mean").why_not_transformers()
