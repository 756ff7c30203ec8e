"""Files of a data set: listed without following links, told apart by size and time, and written whole."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DataError

__all__ = ["file_facts", "local_path", "part_files", "walk", "whole_file"]


def local_path(path: Path) -> Path:
    """Return a path made absolute, `~` being the home directory.

    Raises:
        DataError: If it is an address, such as s3://bucket/pets; says what to do.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # a Path has made one slash of two
        raise DataError(
            f"{path} is an address, and images are mapped from files; copy the data set to a folder, "
            "such as by `aws s3 sync`, and name that"
        )
    return path.expanduser().absolute()


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


def part_files(root: Path, *, suffix: str) -> dict[str, tuple[str, ...]]:
    """Return the files of the parts "train" and "test", and of "" the others, in order of their names.

    A path under `root` belongs to the part that it begins with: `train/0.tar`, `train-00000-of-00002.tar`.
    """
    parts: dict[str, list[str]] = {"train": [], "test": [], "": []}
    for name in walk(root, root=root):
        found = re.match(r"(train|test)(?![A-Za-z])", name) if name.endswith(suffix) else None
        parts[found[1] if found else ""].append(name)
    return {part: tuple(sorted(names)) for part, names in parts.items()}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file that appears at `path` at the end, whole and on disk, or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
