"""The files of one packed data set, in a folder or in a bucket: what packing, checking and opening ask of either.

A file has the same name in both, and appears whole or not at all. While the data set is being packed,
the files of the packing itself lie under WORK. Where a bucket does not answer, every method raises
StorageUnavailable; what is wrong with a file, there or in a folder, is an OSError.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from trainer.data.bucket_files import BucketFiles
from trainer.data.files import PLAN, WORK, is_bucket, named_place, whole_file
from trainer.errors import DataError

__all__ = ["FolderFiles", "PackedFiles", "files_at"]

BUCKET_SLASHES: Final = 2  # of s3://bucket


class PackedFiles(Protocol):
    """The files of one packed data set; pickles. As a string, it is the place that a person knows it by."""

    @property
    def name(self) -> str:
        """Return the data set's id."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by its name, hidden ones left out; empty where there is nothing."""

    def read(self, file: str) -> bytes:
        """Return what is in a small file, or raise FileNotFoundError."""

    def reading(self, file: str) -> AbstractContextManager[Path]:
        """Yield a path at which a file of any size can be read, or raise FileNotFoundError."""

    def writing(self, file: str) -> AbstractContextManager[Path]:
        """Yield where to write a file, which is there at the end."""

    def claimed(self, plan: bytes, *, is_new: bool) -> AbstractContextManager[None]:
        """Write the plan of a packing, and keep packings by other plans out.

        Raises:
            DataError: If another packing was faster.
        """

    def remove_work(self) -> None:
        """Remove the files of the packing itself."""


def files_at(place: str | Path) -> PackedFiles:
    """Return the files of the packed data set in a folder or at `s3://bucket/prefix/NAME`.

    Raises:
        DataError: If it is another address, or a bucket alone; says what to do.
    """
    place = named_place(place)
    if not is_bucket(place):
        return FolderFiles(Path(place))
    if place.count("/") == BUCKET_SLASHES:
        raise DataError(f"{place} is a whole bucket; name a data set in it, such as {place}/pets")
    return BucketFiles(place)


class FolderFiles:
    """The files of a packed data set in a folder, whose name is the id unless another is given."""

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.name

    def __str__(self) -> str:
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """Return sizes; folders in it, which no packed data set has, are listed too."""
        return {path.name: path.stat().st_size for path in self.path.glob("[!.]*") if path.exists()}

    def read(self, file: str) -> bytes:
        return (self.path / file).read_bytes()

    @contextmanager
    def reading(self, file: str) -> Iterator[Path]:
        yield self.path / file

    def writing(self, file: str) -> AbstractContextManager[Path]:
        return whole_file(self.path / file)

    @contextmanager
    def claimed(self, plan: bytes, *, is_new: bool) -> Iterator[None]:  # noqa: ARG002 - the lock tells as much
        """Hold the folder by a lock that dies with its holder, and sweep what a killed one left half-written."""
        work = self.path / WORK
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{self} is being packed by another process") from error
            for leftover in (*self.path.glob(".*.partial"), *work.glob(".*.partial")):
                leftover.unlink(missing_ok=True)
            with self.writing(PLAN) as path:
                path.write_bytes(plan)
            yield

    def remove_work(self) -> None:
        shutil.rmtree(self.path / WORK)
