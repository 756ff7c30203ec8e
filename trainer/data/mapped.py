"""Images that lie in shards and are never read as a whole: only the rows that are asked for.

Rows come in the order of a permutation, so what the kernel would read ahead by itself is never
wanted next. It is told so, and told each row of a batch before the first is touched: it then fetches
them all at once, where page faults would come one by one.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.shards import Shard, image_bytes

__all__ = ["MappedImages"]


class MappedImages:
    """The images of some shards as one array, (M, size, size, 3) uint8, whose memory is the page cache's.

    Each shard that has images takes one file descriptor.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], *, image_size: int) -> None:
        filled = [shard for shard in shards if shard.num_images]
        self._starts = np.cumsum([0, *(shard.num_images for shard in filled)])
        self._row_bytes = image_bytes(image_size)
        self._maps = [_mapped(folder / shard.file) for shard in filled]
        self._arrays = [np.frombuffer(map_, np.uint8).reshape(-1, image_size, image_size, 3) for map_ in self._maps]
        self.shape: tuple[int, int, int, int] = (int(self._starts[-1]), image_size, image_size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a slice, or the images at these rows (0..M - 1), as a new contiguous array.

        Raises:
            IndexError: If there is no such row.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        elif rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} images")
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(shards.tolist(), (rows - self._starts[shards]).tolist(), strict=True))
        for shard, row in places:
            self._announce(shard, row)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for index, (shard, row) in enumerate(places):
            images[index] = self._arrays[shard][row]
        return images

    def _announce(self, shard: int, row: int) -> None:
        start = row * self._row_bytes
        first_page = start - start % mmap.PAGESIZE
        self._maps[shard].madvise(mmap.MADV_WILLNEED, first_page, start + self._row_bytes - first_page)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        map_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    map_.madvise(mmap.MADV_RANDOM)
    return map_
