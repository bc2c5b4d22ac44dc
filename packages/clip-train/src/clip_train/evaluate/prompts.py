"""Class names and the sentences made of them: from a config, or from beside the shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from clip_data import SourceConfig
from clip_train.evaluate.config import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Class names and the sentences made of them.

    Attributes:
        classnames: one per class, in label order.
        templates: each with `{c}`.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    def of(self, classname: str) -> list[str]:
        """The sentences for one class."""
        return [template.format(c=classname) for template in self.templates]


def read_prompts(config: EvaluationConfig) -> Prompts:
    """The class names and templates that a config names, or that lie beside its shards.

    Args:
        config: of a classification.

    Raises:
        ValueError: they are nowhere, empty, or a template lacks `{c}`.
    """
    classnames = read_classnames(config.classnames, config.data)
    filename = "zeroshot_classification_templates.txt"
    templates = _lines(config.templates, "templates", filename, _folders(config.data))
    if wrong := [template for template in templates if "{c}" not in template]:
        raise ValueError(f"a template holds {{c}} where the class name goes; got {wrong[0]!r}")
    return Prompts(classnames=classnames, templates=templates)


def read_classnames(given: str | tuple[str, ...] | None, source: SourceConfig) -> tuple[str, ...]:
    """The class names, in label order.

    Args:
        given: the names, a file with one per line, or `None`: `classnames.txt` beside the shards or a folder up.
        source: the labelled samples.

    Raises:
        ValueError: they are nowhere, or empty.
    """
    return _lines(given, "classnames", "classnames.txt", _folders(source))


def _folders(source: SourceConfig) -> list[Path]:
    parents = [Path(pattern).parent for pattern in source.patterns]
    return list(dict.fromkeys(folder for parent in parents for folder in (parent, parent.parent)))


def _lines(given: str | tuple[str, ...] | None, field: str, filename: str, folders: Sequence[Path]) -> tuple[str, ...]:
    if isinstance(given, tuple):
        lines = given
    else:
        places = [Path(given)] if given else [folder / filename for folder in folders]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            looked = ", ".join(str(place) for place in places)
            raise ValueError(f"no {field} found at {looked}: give a file with one per line, or a list, as {field!r}")
        lines = tuple(line.strip() for line in found.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise ValueError(f"{field} holds no line")
    return lines
