"""The documentation names commands, flags and files that exist; `scripts/run_docs.py` runs what can be run anywhere."""

import ast
import importlib
import re
import runpy
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
INLINE = re.compile(r"`(clip-(?:data|finetune|models|train) [^`]+)`")
SCRIPT = re.compile(r"python ((?:scripts|examples|benchmarks|packages)/[\w/.-]+\.py)([^\n`|]*)")
run_docs = runpy.run_path(str(ROOT / "scripts" / "run_docs.py"))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_among_the_words(page):
    """A verb by itself or with its flags alone names them, and is no command."""
    for found in INLINE.findall(page.read_text("utf-8")):
        name, verb, *words = shlex.split(found.replace("\n", " "))
        known = PARSERS[name]._subparsers._group_actions[0].choices
        assert verb in known, found
        flags = [word for word in words if word.startswith("--")]
        assert set(flags) <= known[verb]._option_string_actions.keys(), found
        if len(words) > len(flags) and "…" not in found and words[0] not in flags:
            known[verb].parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_their_flags(page):
    package = page.parent if (page.parent / "pyproject.toml").exists() else ROOT
    for script, words in SCRIPT.findall(page.read_text("utf-8")):
        path = (package if script.startswith("benchmarks") else ROOT) / script
        assert path.is_file(), script
        for flag in re.findall(r"--[\w-]+", words.partition(" #")[0]):
            assert f'"{flag}"' in path.read_text("utf-8"), f"{script} does not take {flag}"


@pytest.mark.parametrize(
    "script",
    sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("packages/*/benchmarks/*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_scripts_import_of_us_is_there(script):
    """Nothing else notices when what only they use is renamed."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clip_"):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page):
    silent = [block.line for block in run_docs["blocks_of"](page) if block.runs is None]
    assert not silent, "put <!-- run --> or <!-- not run: why --> before these lines"


def test_a_consoles_commands_are_told_from_its_output():
    shown = "$ cat <<END \\\n  > x\nprinted\n$ ls  # what\nx\n"
    assert run_docs["commands_of"](shown) == "cat <<END \\\n  > x\nls  # what\n"


def test_commands_are_found():
    assert sum(len(list(commands_of(page))) for page in PAGES) > 50
    texts = [page.read_text("utf-8") for page in PAGES]
    assert sum(len(INLINE.findall(text)) for text in texts) > 40
    assert sum(len(SCRIPT.findall(text)) for text in texts) > 10
