"""Files of a data set: listed without following links, and told apart by size and time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.errors import DataError

__all__ = ["file_facts", "walk"]


def walk(folder: Path, *, root: Path) -> Iterator[str]:
    """Yield the files under a folder, hidden ones left out, as paths relative to `root`, in order of names.

    Raises:
        DataError: If anything in it is a symbolic link, which could lead out of the data set.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.is_symlink():
                raise DataError(f"{name} is a symbolic link; put the file itself there", file=name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(Path(entry.path), root=root)
            else:
                yield name


def file_facts(root: Path, names: Iterable[str]) -> str:
    """Return name, size and modification time of each file, one a line."""
    facts = ((name, (root / name).stat()) for name in names)
    return "\n".join(f"{name} {fact.st_size} {fact.st_mtime_ns}" for name, fact in facts)
