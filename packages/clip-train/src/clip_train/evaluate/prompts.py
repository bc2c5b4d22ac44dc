"""Class names and the sentences made of them: given, from files, from beside the shards, or a standard data set's."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import json
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_data import SourceConfig
from clip_data.buckets import REMOTE, read_object
from clip_train.evaluate.config import EvaluationConfig

_STANDARD = importlib.resources.files("clip_train.evaluate").joinpath("standard")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Class names and the sentences made of them.

    Attributes:
        classnames: one per class, in label order.
        templates: each with `{c}`; or for each class name its own sentences, in which `{c}` may stand too.

    Example:
        >>> Prompts(("cat", "dog"), ("a {c}", "the {c}")).of("cat")
        ['a cat', 'the cat']
        >>> Prompts(("cat",), {"cat": ("an animal that purrs",)}).of("cat")
        ['an animal that purrs']
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...] | Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse templates without a place for the name, and classes without a sentence.

        Raises:
            ValueError: naming the template, or the classes.
        """
        if isinstance(self.templates, Mapping):
            if missing := [name for name in self.classnames if not self.templates.get(name)]:
                raise ValueError(f"templates by class name hold sentences for every class; none for {missing[:10]}")
            return
        for template in self.templates:
            try:
                fits = "{c}" in template and bool(template.format(c=""))
            except (KeyError, IndexError, ValueError):
                fits = False
            if not fits and template != "{c}":
                raise ValueError(
                    f"a template holds {{c}} where the class name goes, and no other brace; got {template!r}"
                )

    def of(self, classname: str) -> list[str]:
        """The sentences for one class."""
        if isinstance(self.templates, Mapping):
            return [sentence.replace("{c}", classname) for sentence in self.templates[classname]]
        return [template.format(c=classname) for template in self.templates]


def standard_names() -> list[str]:
    """The data sets whose class names and templates come with this package."""
    return sorted(entry.name.removesuffix(".json") for entry in _STANDARD.iterdir() if entry.name.endswith(".json"))


def standard_prompts(name: str) -> Prompts:
    """The class names and templates of a standard data set; its file says where they come from.

    Args:
        name: one of `standard_names()`.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> prompts = standard_prompts("cifar10")
        >>> prompts.of(prompts.classnames[0])[0]
        'a photo of a airplane.'
    """
    known = standard_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known
        raise ValueError(f"no standard class names {name!r}; did you mean {', '.join(near)}?")
    return Prompts(classnames=_standard_lines(name, "classnames"), templates=_standard_lines(name, "templates"))


def _standard_lines(name: str, field: str) -> tuple[str, ...]:
    lines = json.loads(_STANDARD.joinpath(f"{name}.json").read_text(encoding="utf-8"))[field]
    return _standard_lines(lines, field) if isinstance(lines, str) else tuple(lines)  # a name: those of that one


def read_prompts(config: EvaluationConfig) -> Prompts:
    """The class names and templates that a config names, or that lie beside its shards.

    Args:
        config: of a classification.

    Raises:
        ValueError: they are nowhere, empty, or do not belong together.
    """
    classnames = read_classnames(config.classnames, config.data)
    given, filename = config.templates, "zeroshot_classification_templates.txt"
    if given is None and isinstance(config.classnames, str) and config.classnames in standard_names():
        given = config.classnames
    return Prompts(classnames=classnames, templates=_entries(given, "templates", filename, config.data))


def read_classnames(given: str | Sequence[str] | None, source: SourceConfig) -> tuple[str, ...]:
    """The class names, in label order.

    Args:
        given: the names, a file with one per line (a blank line is a class without a name), a standard data set's name,
            or `None`: `classnames.txt` beside the shards or a folder up; of a folder of class folders, their names.
        source: the labelled samples.

    Raises:
        ValueError: they are nowhere, or empty.
    """
    if given is None and source.format == "class_folder":
        folder = Path(source.patterns[0])
        return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    entries = _entries(given, "classnames", "classnames.txt", source)
    if isinstance(entries, Mapping):
        raise ValueError(f"classnames is a list of names, in label order; got an object with {len(entries)} keys")
    return entries


def is_multi_label(given: bool | None, source: SourceConfig) -> bool:
    """Whether samples may have several labels: as given, or as `dataset_type.txt` beside or above the shards says."""
    return dataset_type(source) == "multilabel" if given is None else given


def dataset_type(source: SourceConfig) -> str | None:
    """What `dataset_type.txt` beside or above the shards says, as CLIP_benchmark writes it, such as `retrieval`."""
    found = _find("dataset_type.txt", source)
    return None if found is None else found[1].strip().lower()


def _entries(given: Any, field: str, filename: str, source: SourceConfig) -> Any:
    """A tuple of lines, or of templates a mapping, from wherever they are."""
    if given is None:
        found = _find(filename, source)
        if found is None:
            raise ValueError(
                f"no {field} found at {', '.join(_places(filename, source))}: give as {field!r} a file with one per "
                f"line, a list, or the name of a standard data set, such as imagenet1k"
            )
        entries = _parsed(*found, field)
    elif not isinstance(given, str):
        entries = given
    elif (text := _text_of(given)) is not None:
        entries = _parsed(given, text, field)
    elif given in standard_names():
        entries = getattr(standard_prompts(given), field)
    else:
        raise ValueError(f"no {field} found at {given}: it is no file, and none of {', '.join(standard_names())}")
    if not entries:
        raise ValueError(f"{field} holds no line")
    return {name: tuple(lines) for name, lines in entries.items()} if isinstance(entries, Mapping) else tuple(entries)


def _parsed(place: str, text: str, field: str) -> Any:
    if place.endswith(".json"):
        return json.loads(text)
    lines = [line.strip() for line in text.splitlines()]
    # A label is the number of a line: CLIP_benchmark counts blank ones too.
    return lines if field == "classnames" else [line for line in lines if line]


def _find(filename: str, source: SourceConfig) -> tuple[str, str] | None:
    """Where the first file of a name is, and what is in it."""
    found = ((place, _text_of(place)) for place in _places(filename, source))
    return next(((place, text) for place, text in found if text is not None), None)


def _places(filename: str, source: SourceConfig) -> list[str]:
    """Where a file of a name may be: beside the shards, and in the folder above."""
    folders: dict[str, None] = {}
    for pattern in source.patterns:
        beside = os.path.dirname(pattern)
        above = os.path.dirname(beside)
        is_outside = pattern.startswith(REMOTE) and not above.startswith(REMOTE)  # above a bucket is nothing
        folders |= dict.fromkeys([beside] if is_outside else [beside, above])
    return [os.path.join(folder, filename) for folder in folders]


def _text_of(place: str) -> str | None:
    """What is in a file, here or in a bucket; `None` where there is none."""
    if not place.startswith(REMOTE):
        return Path(place).read_text(encoding="utf-8") if Path(place).is_file() else None
    try:
        return bytes(read_object(place)).decode("utf-8")
    except FileNotFoundError:
        return None
