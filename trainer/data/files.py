"""Files of a data set: listed without following links, told apart by size and time, and written whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.errors import DataError, StorageUnavailable

__all__ = [
    "PLAN",
    "WORK",
    "file_facts",
    "is_bucket",
    "local_path",
    "named_place",
    "part_files",
    "raise_if_passing",
    "walk",
    "whole_file",
]

WORK: Final = ".packing"  # beside what is packed, as long as it is not complete
PLAN: Final = f"{WORK}/plan.json"
# of a file: waiting mends none of these; EINVAL is a damaged one that sends its reader to an impossible place
OF_THE_FILE: Final = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a Path has made it of two
BUCKET = re.compile(r"s3://[^/?#]+(/[^/?#]+)*")


def is_bucket(place: str | Path) -> bool:
    """Return whether a place is in a bucket, and no path."""
    return str(place).startswith("s3://")


def named_place(place: str | Path) -> str:
    """Return the absolute path of a folder, or `s3://bucket/prefix` without a slash at its end.

    Raises:
        DataError: If it is another address; says what to do.
    """
    if not is_bucket(place):
        return str(local_path(Path(place)))
    address = str(place).rstrip("/")
    if not BUCKET.fullmatch(address):
        raise DataError(f"{place} is no place for data sets; use a folder or s3://bucket/prefix")
    return address


def local_path(path: Path) -> Path:
    """Return a path made absolute, `~` being the home directory.

    Raises:
        DataError: If it is an address, such as s3://bucket/pets; says what to do.
    """
    if ADDRESS.match(str(path)):
        raise DataError(
            f"{path} is an address, and files are read here; copy them to a folder, such as by `aws s3 sync`, "
            "and name that"
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


def raise_if_passing(error: Exception, *, name: str) -> None:
    """Raise StorageUnavailable where the disk, the share or the node failed, which says nothing of the file.

    Args:
        error: What ended the reading of a file. Decoders raise OSError too, of a damaged file, and
            give it no number.
        name: What the file is shown as.
    """
    if isinstance(error, OSError) and error.errno is not None and error.errno not in OF_THE_FILE:
        raise StorageUnavailable(f"{name} cannot be read at present: {error.strerror}", file=name) from error


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
