import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_finetune.cli import main
from clip_finetune.protect import pull_to_start
from clip_finetune.wise_ft import best_between
from clip_models import load_pretrained
from clip_train.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def config(folder):
    source = {"format": "tfrecord", "shards": "train.tfrecord"}
    tree = {
        "output_dir": "out",
        "model": {"pretrained": "speaking"},
        "data": {"train": [source]},
        "global_batch_size": 16,
        "train_samples": 48,
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": [{"name": "colours", "task": "zeroshot_classification", "data": source, "templates": ["{c}"]}],
    }
    (folder / "pairs.json").write_text(json.dumps(tree))
    return folder / "pairs.json"


def same(a, b):
    return [bool((np.asarray(x) == np.asarray(y)).all()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def test_low_rank_pairs_hold_the_towers_and_tell_before_from_after(folder, config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["pairs", str(config), "--set", f"output_dir={out}", "--set", "protect.kind=lora"]
    assert main(arguments) == 0
    before, tuned = load_pretrained(folder / "speaking")[1], load_pretrained(out / "model")[1]
    changed = {
        name for name in ("vision", "text") for kept, part in [(same(before[name], tuned[name]), name)] if not all(kept)
    }
    assert changed == {"vision", "text"}
    assert same(before["vision"]["norm"], tuned["vision"]["norm"]) == [True, True]
    assert same(before["text"]["token_embedding"], tuned["text"]["token_embedding"]) == [True]
    results = json.loads((out / "results.json").read_text())
    assert results["before"].keys() == results["after"].keys() == {f"colours/{m}" for m in METRICS}
    with Checkpoints(out / "run" / "checkpoints") as checkpoints:
        kept = checkpoints._store._manager.item_metadata(3)
    params, opt_state, updates = [
        sum(np.prod(x.shape) for x in jax.tree.leaves(part))
        for part in (kept.params, kept.opt_state, kept.params["lora"])
    ]
    assert updates < params / 3
    assert opt_state < 2 * updates + 20
    capsys.readouterr()
    assert main(arguments) == 0
    assert "This task is finished" in capsys.readouterr().out
    assert main([*arguments, "--set", "protect.lora_rank=2"]) == 2
    assert "protect.lora_rank: 8 there, 2 here" in capsys.readouterr().err


METRICS = ("acc1", "mean_per_class_recall")


def test_locked_towers_stay_and_wise_ft_looks_back(folder, config, tmp_path):
    out = tmp_path / "out"
    changes = [f"output_dir={out}", 'lock=["image", "text"]', "protect.kind=wise-ft", "protect.alphas=[1, 0]"]
    changes.append("protect.alpha=0.25")
    assert main(["pairs", str(config), *(part for change in changes for part in ("--set", change))]) == 0
    before, tuned = load_pretrained(folder / "speaking")[1], load_pretrained(out / "model")[1]
    assert all(same([before["vision"], before["text"]], [tuned["vision"], tuned["text"]]))
    assert before["logit_scale"] != tuned["logit_scale"]
    results = json.loads((out / "results.json").read_text())
    assert [point["alpha"] for point in results["curve"]] == [1, 0]
    assert results["alpha"] == 0.25
    assert results["before"] == results["after"]


def test_of_points_between_two_the_best_is_taken():
    start, end = {"w": np.float32([0, 2])}, {"w": np.float32([4, 2])}
    best, alpha, curve = best_between(start, end, (0, 0.25, 0.5, 1), lambda tree: -abs(float(tree["w"][0]) - 1))
    assert (best["w"].tolist(), alpha) == ([1, 2], 0.25)
    assert curve == ((0, -1), (0.25, 0), (0.5, -1), (1, -3))


def test_the_pull_is_the_gradient_of_a_squared_distance():
    params = {"w": jnp.array([1.0, 2.0]), "still": jnp.ones(2)}
    tx = pull_to_start(0.5, {"w": True, "still": False})
    state = tx.init(params)
    assert state.start["still"] is None
    moved = {"w": params["w"] + jnp.array([0.2, -0.4]), "still": None}
    updates, _ = tx.update({"w": jnp.ones(2), "still": None}, state, moved)
    np.testing.assert_allclose(updates["w"], [1.1, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('model={"preset": "siglip-b-16-224"}', "model.pretrained is what is tuned"),
        ("protect.alpha=1.5", "protect: alpha is in [0, 1]; got 1.5"),
        ('lock=["imgae"]', "no parameter is matched by 'imgae'"),
        ("model.pretrained=eyes", "model: pairs of pictures and texts need both towers; the model has no text tower"),
        ("protect.l2=0", "protect: l2 is above 0; got 0"),
    ],
)
def test_what_cannot_be_is_one_message(folder, config, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.chdir(folder)
    out = ["--set", f"output_dir={tmp_path / 'out'}", "--set", "protect.kind=wise-ft"]
    assert main(["pairs", str(config), *out, "--set", change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
