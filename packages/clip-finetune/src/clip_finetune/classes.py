"""Whether classes are a task: two at least, and the same in names and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clip_data import SourceConfig
from clip_finetune.files import files_below


def check_classes(source: SourceConfig, classnames: tuple[str, ...], others: Sequence[SourceConfig] = ()) -> None:
    """Refuse a task that is none: fewer than two classes, a class folder without a picture, folders of other classes.

    Args:
        source: of the training samples.
        classnames: in label order.
        others: of validation and test samples.

    Raises:
        ValueError: naming the classes.
    """
    if len(classnames) < 2:
        raise ValueError(f"a classifier needs at least two classes; got {', '.join(classnames) or 'none'}")
    first: list[str] | None = None
    for one in (source, *others):
        if one.format != "class_folder":
            continue
        root = Path(one.patterns[0])
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        names = [path.name for path in folders]
        if empty := [path.name for path in folders if not any(files_below(path))]:
            raise ValueError(f"every class folder holds pictures; these are empty: {', '.join(empty)}")
        if len(names) != len(classnames):
            raise ValueError(
                f"{root} has {len(names)} class folders ({_some(names)}), and there are {len(classnames)} class names "
                f"({_some(classnames)}): give one name for each folder, in the order of their names"
            )
        first = first or names
        if names != first:
            differ = sorted(set(names) ^ set(first))
            raise ValueError(f"class folders have the same names everywhere; {root} differs in {_some(differ)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
