"""The example that a user of a published checkpoint begins with, on a tiny one."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "packages" / "clip-models" / "tests" / "fixtures"


@pytest.mark.parametrize("name", ["clip", "siglip2_naflex"])
def test_it_ranks_the_pictures(name, monkeypatch, capsys):
    model = FIXTURES / "from_files" / name
    monkeypatch.setattr(sys, "argv", ["", str(model), str(FIXTURES / "pictures"), "a photo of a cat"])
    runpy.run_path(str(ROOT / "examples" / "use_a_checkpoint.py"))
    found = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    similarities = {Path(path).name: float(similarity) for similarity, path in found}
    assert list(similarities.values()) == sorted(similarities.values(), reverse=True)
    golden = np.load(model / "golden.npz")
    expected = golden["image_embeds"] @ golden["text_embeds"][0]
    for picture, cosine in zip(("on_its_side.jpg", "transparent.png", "grey.png"), expected, strict=True):
        assert similarities[picture] == pytest.approx(cosine, abs=1e-3)
