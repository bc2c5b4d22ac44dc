import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_train.host import accelerators

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import json, os, sys
from clip_train.host import prepare_host
print("once", flush=True)
prepare_host()
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


def started(**environment):
    """How often the program began, its arguments and its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "JAX"))}
    command = [sys.executable, "-c", PROGRAM, "a b", "--set", "x=1"]
    printed = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout
    *once, last = printed.splitlines()
    return len(once), *json.loads(last)


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text() or bool(accelerators()),
    reason="huge pages are not ours to ask for here",
)
def test_a_process_starts_anew_once_with_huge_pages(tmp_path):
    times, arguments, environment = started(XDG_CACHE_HOME=str(tmp_path))
    assert (times, arguments) == (2, ["a b", "--set", "x=1"])
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "clip-jax"))


def test_what_is_set_stays():
    given = {"GLIBC_TUNABLES": "", "JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    times, _, environment = started(**given)
    assert times == 1
    assert {name: environment[name] for name in given} == given
