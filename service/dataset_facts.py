"""What data sets hold, read once and remembered until they change: a request must not open their files again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from service.errors import BlobsUnavailable, DatasetsUnavailable
from service.image_counts import ImageCounts
from service.settings import Settings
from service.storage_threads import StorageThreads
from trainer.errors import StorageUnavailable

if TYPE_CHECKING:
    from trainer.data.source import DatasetInfo  # numpy comes with it

__all__ = ["DatasetFacts"]

Result = TypeVar("Result")

ANSWER_S: Final = 25.0  # a directory on a slow network may list a million files
MOST_REMEMBERED: Final = 256
MAX_COUNTED_BYTES: Final = 64 * 2**20  # decoded: up to here a data set is decoded to count its split exactly, once


class DatasetFacts:
    """The facts of the data sets that a spec can name here.

    A data set is asked each time for its `version`, from sizes and times of its files (one in a bucket:
    from a listing of it and its manifest); all else is read anew only for a version that was not seen
    before. What cannot be used is not remembered. Every method raises DatasetsUnavailable where a bucket
    does not answer.
    Everything but `ask` may read files: call it off the event loop, by `ask`. Safe to call from several threads.
    """

    def __init__(self, settings: Settings) -> None:
        """Read nothing yet."""
        self._datasets_dir = settings.datasets
        self._cache_dir = settings.cache_dir
        self._trains_here = settings.cpus is not None  # what is decoded is of use to more than a count
        self._described = lru_cache(MOST_REMEMBERED)(self._describe)
        self._counts = ImageCounts()
        self._threads = StorageThreads()

    async def ask(self, call: Callable[[], Result]) -> Result:
        """Return `call()`, in a thread. Raises DatasetsUnavailable where nothing answers for ANSWER_S."""
        try:
            return await self._threads.run(call, within_s=ANSWER_S)
        except BlobsUnavailable as error:
            structlog.get_logger("service.datasets").warning("datasets_unavailable", detail=error.message)
            raise DatasetsUnavailable("the data sets do not answer") from error

    def all(self) -> list[DatasetInfo]:
        """Return the entry of every data set, as it is now; what cannot be used says why in `problem`."""
        from trainer.data.catalogue import list_datasets  # numpy comes with it

        with _reached():
            return list_datasets(self._datasets_dir)

    def version(self, name: str) -> str:
        """Return a word that changes when the data set does. Raises DataError as `describe` does."""
        from trainer.data.catalogue import find_source  # numpy comes with it

        with _reached():
            fingerprint = find_source(name, self._datasets_dir).fingerprint()
        return hashlib.sha256(fingerprint.encode()).hexdigest()  # it may name a million files

    def describe(self, name: str, version: str) -> DatasetInfo:
        """Return the entry of one data set. Raises DataError; for an unknown id its context lists the `allowed`."""
        return self._described(name, version)

    def num_images(self, name: str, version: str, *, image_size: int, validation_ratio: float) -> int:
        """Return how many images an epoch draws from: training less validation.

        Exact where the data set is small at this image size and soon decoded, or was by an earlier request; else the
        expected number, right to within the rounding of its classes.

        Raises:
            DataError: If the data set is unknown or its images cannot be read.
        """
        info = self.describe(name, version)
        num_train, side = info.num_train, max(image_size, info.native_image_size or 0)  # what is read is decoded whole
        counted = None
        if num_train * side**2 * 3 <= MAX_COUNTED_BYTES:
            # Where that fails, the cache has no room here, and where it trains it may; or the files just went away.
            with suppress(OSError, StorageUnavailable):
                counted = self._counts.get(
                    (name, version, image_size, validation_ratio),
                    lambda: self._count(name, image_size, validation_ratio),
                )
        return num_train - round(num_train * validation_ratio) if counted is None else counted

    def _describe(self, name: str, _version: str) -> DatasetInfo:
        from trainer.data.catalogue import describe

        with _reached():
            return describe(name, self._datasets_dir)

    def _count(self, name: str, image_size: int, validation_ratio: float) -> int:
        from trainer.data.prepare import prepare

        with self._decoded_in() as cache_dir:
            dataset = prepare(
                name,
                image_size=image_size,
                cache_dir=cache_dir,
                datasets_dir=self._datasets_dir,
                validation_ratio=validation_ratio,
            )
            return len(dataset.pretrain)

    @contextmanager
    def _decoded_in(self) -> Iterator[Path]:
        """Yield the cache of the trials of this machine, or a folder that goes when it was counted."""
        if self._trains_here:
            yield self._cache_dir
            return
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._cache_dir, prefix="counted-") as folder:
            yield Path(folder)


@contextmanager
def _reached() -> Iterator[None]:
    """Say why a bucket is not reached in the log, which may name its address, and raise DatasetsUnavailable."""
    try:
        yield
    except StorageUnavailable as error:
        structlog.get_logger("service.datasets").warning("datasets_unavailable", detail=error.message)
        raise DatasetsUnavailable(error.message) from error
