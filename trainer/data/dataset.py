"""A data set ready to train on: memory-mapped images, and which of them are for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dataset", "StoredImages", "Subset"]


class StoredImages(Protocol):
    """All images of a split, (M, size, size, 3) RGB, of which only those asked for are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Some rows of the images of a split, in ascending order; indexing reads only what is asked for."""

    array: StoredImages = field(repr=False)
    sample_ids: NDArray[np.int64] = field(repr=False)  # the rows of `array` that belong to this subset
    labels: NDArray[np.int64] | None = field(repr=False)  # aligned with sample_ids

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a slice, or the images at these positions (0..len - 1), as a new contiguous array."""
        return self.array[self.sample_ids[index]]

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at these positions, (B, size, size, 3)."""
        return self[positions]

    def part(self, positions: NDArray[np.int64]) -> Subset:
        """Return the subset of the images at these positions, ascending."""
        labels = None if self.labels is None else self.labels[positions]
        return Subset(array=self.array, sample_ids=self.sample_ids[positions], labels=labels)

    @property
    def images(self) -> NDArray[np.uint8]:
        """Return all images of the subset, in memory."""
        return self[:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One data set at one image size. Rows of `pretrain` and `validation` share one numbering.

    Nothing of the test split is read or mapped before `read_test` is called: it is the last thing
    a run does, and it selects nothing.
    """

    name: str
    image_size: int
    digest: str  # sha256 of all decoded pixels, labels, groups and class names
    class_names: tuple[str, ...] | None
    pretrain: Subset
    validation: Subset
    num_test: int
    warnings: tuple[str, ...]
    _test: Callable[[], Subset] = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Return the number of classes; 0 without labels."""
        return len(self.class_names or ())

    @property
    def num_train(self) -> int:
        """Return the number of training images, validation included."""
        return len(self.pretrain) + len(self.validation)

    def read_test(self) -> Subset | None:
        """Return the test split, or None if there is none; to be called once, at the end."""
        return self._test() if self.num_test else None
