import json

import pytest

from clip_models import preset, presets
from clip_models.cli import main
from clip_models.formats.native import config_from_dict


def test_list_has_a_line_for_each(capsys):
    assert main(["list", "vit-b"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name in presets() if "vit-b" in name]
    assert head.split() == ["name", "params/M", "image", "patch", "width", "layers", "tokens", "loss"]
    assert " ".join(lines[0].split()) == "vit-b-32 151.28 224 32 768 + 512 12 + 12 77 softmax"


def test_list_as_json(capsys):
    assert main(["list", "siglip2-b-16-224", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["num_params"] == 375_187_970
    assert (row["image_size"], row["text_width"], row["decoder_width"], row["loss"]) == (224, 768, None, "sigmoid")


def test_show_prints_counts_and_the_config(capsys):
    assert main(["show", "vit-b-32"]) == 0
    counts, _, contents = capsys.readouterr().out.partition("{")
    counts = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in counts.splitlines()}
    assert counts["total"] == counts["vision"] + counts["text"] + counts["logit_scale"] == 151_277_313
    assert counts["vision"] == sum(count for name, count in counts.items() if name.startswith("vision/"))
    assert config_from_dict(json.loads("{" + contents)) == preset("vit-b-32")
    assert main(["show", "vit-b-32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "vit-b-32",
        "num_params": counts,
        "config": json.loads("{" + contents),
    }


@pytest.mark.parametrize("arguments", [["show", "vit-b32"], ["list", "nothing"]])
def test_a_wrong_name_is_one_message(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: no ")
