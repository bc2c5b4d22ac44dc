"""The documentation names commands, flags and files that exist; `scripts/run_docs.py` runs what can be run anywhere."""

import re
import shlex
from pathlib import Path

import pytest

import clip_data.cli
import clip_finetune.cli
import clip_models.cli
import clip_train.cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("examples/**/*.md")]
)
PARSERS = {
    f"clip-{name}": module._parser()
    for name, module in {
        "data": clip_data.cli,
        "finetune": clip_finetune.cli,
        "models": clip_models.cli,
        "train": clip_train.cli,
    }.items()
}
FENCE = re.compile(r"^```(?:bash|console|sh)?\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(
    r"^(?:\$ |short=\")?(?:.*&& )?(?:[A-Z_]+=\S+ )*(?:mpirun -n \d+ )?(?:uv run )?(clip-\w+ .*)$", re.M
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(?:#[^)\s]*)?\)")


def commands_of(page):
    for block in FENCE.findall(page.read_text("utf-8")):
        for line in COMMAND.findall(block.replace("\\\n", " ")):
            words = shlex.split(line.removesuffix('"'), comments=True)
            ends = [n for n, word in enumerate(words) if word in {"&", "&&", "|", ">", "2>&1"}]
            yield words[: min(ends, default=len(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_links(page):
    for name, *words in commands_of(page):
        try:
            PARSERS[name].parse_args(words)
        except SystemExit:
            pytest.fail(f"{name} does not take {shlex.join(words)}")
        for word in words:
            if word.startswith(("examples/", "docs/")):
                assert list(ROOT.glob(word)), word
    for link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_commands_are_found():
    assert sum(len(list(commands_of(page))) for page in PAGES) > 50
