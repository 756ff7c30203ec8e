"""The files of one packed data set as objects of a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.data.files import PLAN, WORK
from trainer.errors import DataError, StorageUnavailable
from trainer.storage import BlobMissing, S3Storage

__all__ = ["BucketFiles", "reached"]


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Raise StorageUnavailable, with the address, where the body meets a bucket that does not answer or refuses."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"the data sets at {address} cannot be reached: {error}") from error


class BucketFiles:
    """The files of a packed data set at `s3://bucket/prefix/NAME`; what is written passes through a temporary file.

    They are not locked. What a packing writes follows from its plan and the source, and the plan is
    put by a condition: two packings that run at once have one plan, and write the same bytes.
    """

    def __init__(self, address: str, storage: S3Storage | None = None) -> None:
        self._address = address
        self.name = address.rpartition("/")[2]
        self._storage = storage or S3Storage.at(address)
        self._sizes: dict[str, int] | None = None

    def __str__(self) -> str:
        return self._address

    def __reduce__(self) -> tuple[Any, ...]:
        return (BucketFiles, (self._address,))

    def sizes(self) -> dict[str, int]:
        """Return sizes as this object first saw them."""
        if self._sizes is None:
            with reached(self._address):
                found = self._storage.sizes()
            self._sizes = {file: size for file, size in found.items() if not file.startswith(".")}
        return self._sizes

    def read(self, file: str) -> bytes:
        return b"".join(self._stream(file))

    @contextmanager
    def reading(self, file: str) -> Iterator[Path]:
        with TemporaryDirectory(prefix="simclr-") as folder:
            path = Path(folder) / "file"
            try:
                self.fetch(file, path)
            except FileNotFoundError:
                raise
            except OSError as error:
                message = (
                    f"{self}/{file} finds no place in {folder}: {error.strerror}; set TMPDIR to a folder with room"
                )
                raise StorageUnavailable(message) from error
            yield path

    def fetch(self, file: str, path: Path) -> None:
        """Write a file's content to a path on this machine. Raises FileNotFoundError if the bucket has none."""
        with path.open("wb") as target:
            for piece in self._stream(file):
                target.write(piece)

    @contextmanager
    def writing(self, file: str) -> Iterator[Path]:
        with TemporaryDirectory(prefix="simclr-") as folder:
            path = Path(folder) / "file"
            yield path
            with reached(self._address):
                self._storage.upload(file, path)

    @contextmanager
    def claimed(self, plan: bytes, *, is_new: bool) -> Iterator[None]:
        with reached(self._address):
            if not is_new:
                self._storage.write(PLAN, plan)
            elif not self._storage.create(PLAN, plan):
                raise DataError(f"{self} is being packed by another process")
        yield

    def remove_work(self) -> None:
        with reached(self._address):
            for key in self._storage.list(f"{WORK}/"):
                self._storage.delete(key)

    def _stream(self, file: str) -> Iterator[bytes]:
        """Yield a file in pieces; an error of who takes them is their own."""
        try:
            with reached(self._address):
                yield from self._storage.stream(file)
        except BlobMissing as error:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), f"{self}/{file}") from error
