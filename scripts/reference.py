"""What mkdocs builds beside docs/: the reference of the six packages and of a run's config, and what docs/ links to.

A hook of mkdocs.yml. Nothing that it makes is written into the repository: the public names are those of each package's
`__all__`, described by their docstrings, and the config is described by its JSON schema. Pages link to files of the
repository as a forge shows them (`../launch/tpu.sh`); on the site those files lie under `repository/`.
"""

import ast
import json
import os
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from clip_train.config import TrainConfig
from clip_train.config_file import schema

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGES = ("clip_losses", "clip_models", "clip_sharding", "clip_data", "clip_train", "clip_finetune")
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the reference, the packages' READMEs, and what any of the pages links to outside docs/."""
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=package_page(package)))
    files.append(File.generated(config, "reference/config.md", content=config_page()))
    waiting = [*DOCS.rglob("*.md"), *(ROOT / "packages").glob("*/README.md")]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if DOCS not in path.parents:
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting += [target_of(path, link) for link, _ in LINK.findall(path.read_text("utf-8"))]
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between files of the site."""
    source = page.file.src_uri
    if source.startswith("reference/"):
        return markdown
    path = ROOT / source.removeprefix("repository/") if source.startswith("repository/") else DOCS / source

    def on_site(match):
        target = place_of(target_of(path, match[1]))
        return f"]({os.path.relpath(target, os.path.dirname(source) or '.')}{match[2] or ''})"

    return LINK.sub(on_site, markdown)


def target_of(page, link):
    """The file that a link on a page means; of a folder, its README or all that is told of it."""
    path = Path(os.path.normpath(page.parent / link))
    if path.is_dir():
        path /= "README.md"
    if not path.is_file() or ROOT not in path.parents:
        raise PluginError(f"{page.relative_to(ROOT)} links to {link}, which is no file of the repository")
    return path


def place_of(path):
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def package_page(package):
    """A page with the public names of a package, in the order of its `__all__`."""
    tree = ast.parse(next((ROOT / "packages").glob(f"*/src/{package}/__init__.py")).read_text("utf-8"))
    names = next(
        ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )
    lines = [f"# {package}", "", ast.get_docstring(tree) or "", ""]
    return "\n".join([*lines, *(f"::: {package}.{name}\n" for name in names)])


def config_page():
    """A page with every field of a run's config: what it may be, its default, and what it says."""
    described = schema(TrainConfig)
    lines = [
        "# A run's config",
        "",
        "Every field of the JSON that `clip-train run` reads, from the schema that `clip-train schema` prints.",
        "",
        *section("TrainConfig", described),
    ]
    for name in reachable(described):
        lines += section(name, described["$defs"][name])
    return "\n".join(lines)


def reachable(described):
    """The names of what a config is composed of, in the order in which it is met."""
    names, waiting = [], [described["properties"]]
    while waiting:
        for name in re.findall(r"#/\$defs/(\w+)", json.dumps(waiting.pop(0))):
            if name not in names:
                names.append(name)
                waiting.append(described["$defs"][name].get("properties", {}))
    return names


def section(name, described):
    summary, _, attributes = described.get("description", "").partition("\nAttributes:\n")
    attributes = attributes.partition("\n\n")[0]
    meanings = {
        match[1]: " ".join(match[2].split()) for match in re.finditer(r"^ {4}(\w+): ((?:.|\n {5,})*)", attributes, re.M)
    }
    lines = [f"## {name}", "", summary.strip(), "", "| field | what it may be | default | |", "|---|---|---|---|"]
    required = described.get("required", [])
    for field, value in described.get("properties", {}).items():
        default = "required" if field in required else f"`{json.dumps(value.get('default'), ensure_ascii=False)}`"
        if isinstance(value.get("default"), dict):
            default = "its own defaults"
        cells = (f"`{field}`", kind_of(value), default, meanings.get(field, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def kind_of(value):
    """A type of the schema in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(kind_of(one) for one in value[key]))
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"[{', '.join(kind_of(one) for one in value['prefixItems'])}]"
        return f"list of {kind_of(value.get('items', {}))}"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"object of {kind_of(value['additionalProperties'])}"
    return value.get("type", "anything")
