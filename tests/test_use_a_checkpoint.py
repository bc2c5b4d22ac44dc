"""The example that a user of a published checkpoint begins with, on a tiny one."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clip_models import load_pretrained, save_pretrained

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "packages" / "clip-models" / "tests" / "fixtures"


def search(monkeypatch, capsys, model, sentence):
    """Cosines by the pictures' names, in the order of the answer."""
    monkeypatch.setattr(sys, "argv", ["", str(model), str(FIXTURES / "pictures"), sentence])
    runpy.run_path(str(ROOT / "examples" / "use_a_checkpoint.py"))
    found = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    return {Path(path).name: float(similarity) for similarity, path in found}


@pytest.mark.parametrize("name", ["clip", "siglip2_naflex"])
def test_it_ranks_the_pictures(name, monkeypatch, capsys):
    model = FIXTURES / "from_files" / name
    similarities = search(monkeypatch, capsys, model, "a photo of a cat")
    assert list(similarities.values()) == sorted(similarities.values(), reverse=True)
    golden = np.load(model / "golden.npz")
    expected = golden["image_embeds"] @ golden["text_embeds"][0]
    for picture, cosine in zip(("on_its_side.jpg", "transparent.png", "grey.png"), expected, strict=True):
        assert similarities[picture] == pytest.approx(cosine, abs=1e-3)


def test_it_prepares_texts_as_the_model_expects_them(monkeypatch, capsys, tmp_path):
    config, params = load_pretrained(FIXTURES / "from_files" / "siglip2_fixed")
    found = {}
    for name, expects in {
        "plain": {},
        "cleaned": {"canonicalize": True},
        "padded": {"pad_id": 7},
        "masked": {"mask_padding": True},
    }.items():
        save_pretrained(tmp_path / name, replace(config, preprocess=replace(config.preprocess, **expects)), params)
        found[name] = search(monkeypatch, capsys, tmp_path / name, "a photo, of a cat")
    assert len({tuple(similarities.items()) for similarities in found.values()}) == 4
    assert found["cleaned"] == search(monkeypatch, capsys, tmp_path / "plain", "a photo of a cat")
