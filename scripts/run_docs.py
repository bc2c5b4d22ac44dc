"""Runs the commands of the documentation as they stand.

    uv run python scripts/run_docs.py                    # every page
    uv run python scripts/run_docs.py docs/losses.md     # one page

Every block of commands or of Python in docs/ has `<!-- run -->` or `<!-- not run: why -->` on the line before it; those
of docs/tutorial.md all run. Of a `console` block the lines after `$ ` do. The blocks of a page run in their order, in
an empty folder with a copy of the repository's `examples` in it. A block that fails ends its page, and the script with
status 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>run|not run: (?P<why>[^\n]+)) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
# Others, such as json, are for reading.
INTERPRETERS = {name: ["bash", "-euo", "pipefail", "-s"] for name in ("bash", "sh", "console", "")}
INTERPRETERS["python"] = [sys.executable, "-"]


class Block(NamedTuple):
    """What is to be run, or why it is not: `runs` is None where the page does not say."""

    line: int
    language: str
    code: str
    runs: bool | None
    why: str | None


def blocks_of(page):
    """The blocks of a page that could be run."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        if match["language"] in INTERPRETERS:
            runs = True if page.name == "tutorial.md" else None if match["mark"] is None else match["mark"] == "run"
            code = commands_of(match["code"]) if match["language"] == "console" else match["code"]
            yield Block(text.count("\n", 0, match.start("language")) + 1, match["language"], code, runs, match["why"])


def commands_of(console):
    """The commands among what a terminal shows."""
    lines, goes_on = [], False
    for line in console.splitlines(keepends=True):
        if goes_on or line.startswith("$ "):
            lines.append(line.removeprefix("$ "))
            goes_on = line.endswith("\\\n")
    return "".join(lines)


def run_page(page, folder):
    """Runs a page's blocks in a folder; whether all of them ended well."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks_of(page):
        name = f"{page.relative_to(ROOT)}:{block.line}"
        if not block.runs:
            print(f"{'':16}  {name}  not run: {block.why or 'nothing says whether it could be'}", flush=True)
            continue
        start = time.monotonic()
        done = subprocess.run(
            INTERPRETERS[block.language],
            input=block.code,
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        print(f"{'ok' if done.returncode == 0 else 'FAILED':6} {time.monotonic() - start:6.1f} s  {name}", flush=True)
        if done.returncode:
            print(f"{block.code}\nended with {done.returncode}:\n{done.stdout}")
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    pages = [page.resolve() for page in parser.parse_args().pages] or sorted((ROOT / "docs").rglob("*.md"))
    well = True
    for page in pages:
        with tempfile.TemporaryDirectory(prefix="docs-") as folder:
            well &= run_page(page, Path(folder))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
