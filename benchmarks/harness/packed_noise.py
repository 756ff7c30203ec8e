"""Random images to be packed, as many as asked for. Imports the trainer late."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainer.data.source import SourceSplits

__all__ = ["Noise", "drop_from_page_cache"]


class Noise:
    """Random images, as many as asked for."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images

    def fingerprint(self) -> str:
        return f"noise {self._num_images}"

    def open(self) -> SourceSplits:
        from trainer.data.source import SourceSplit, SourceSplits

        split = SourceSplit(num_images=self._num_images, blocks=NoiseBlocks(range(self._num_images)))
        return SourceSplits(train=split, test=None, class_names=None)


class NoiseBlocks:
    """Random images in blocks."""

    BLOCK: Final = 4096

    def __init__(self, rows: range) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> NoiseBlocks:
        return NoiseBlocks(self._rows[rows])

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        generator = np.random.default_rng(self._rows.start)
        for start in range(0, len(self), self.BLOCK):
            count = min(self.BLOCK, len(self) - start)
            yield generator.integers(0, 256, (count, image_size, image_size, 3), np.uint8)


def drop_from_page_cache(paths: Iterable[Path]) -> None:
    """Write files to the disk and drop them from memory: who reads them next reads the disk, on its own account."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
