"""The README's first program, as it stands."""

import re
from pathlib import Path


def test_the_first_program_runs(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert program is not None
    exec(program[1], {})
    assert capsys.readouterr().out.startswith("[[")
