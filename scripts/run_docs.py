"""Runs the commands of the documentation as they stand.

    uv run python scripts/run_docs.py                    # the tutorial, and what is marked on the other pages
    uv run python scripts/run_docs.py docs/losses.md     # one page

Of docs/tutorial.md every `bash` and `python` block runs, of other pages those with `<!-- run -->` on the line before.
The blocks of a page run in their order, in an empty folder with the repository's `examples` in it. A block that fails
ends its page, and the script with status 1.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(?P<mark><!-- run -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S)
INTERPRETERS = {"bash": ["bash", "-euo", "pipefail", "-s"], "python": [sys.executable, "-"]}


def blocks_of(page):
    """(line, language, code) of each block of a page that runs."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        if match["mark"] or page.name == "tutorial.md":
            yield text.count("\n", 0, match.start("language")) + 1, match["language"], match["code"]


def run_page(page, folder):
    """Runs a page's blocks in a folder; whether all of them ended well."""
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line, language, code in blocks_of(page):
        start = time.monotonic()
        done = subprocess.run(
            INTERPRETERS[language],
            input=code,
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        name = f"{page.relative_to(ROOT)}:{line}"
        print(f"{'ok' if done.returncode == 0 else 'FAILED':6} {time.monotonic() - start:6.1f} s  {name}", flush=True)
        if done.returncode:
            print(f"{code}\nended with {done.returncode}:\n{done.stdout}")
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
