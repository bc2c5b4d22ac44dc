"""The README's first program, as it stands."""

import re
from pathlib import Path

import pytest


def test_the_first_program_runs(capsys):
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("an installed package has no README beside its tests")
    program = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert program is not None
    exec(program[1], {})
    assert capsys.readouterr().out.startswith("[[")
