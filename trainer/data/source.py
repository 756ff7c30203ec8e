"""A source of images: what a data set is before it is decoded.

A source answers cheap questions (how many, which classes, has it changed) without decoding, and
hands out its splits as blocks of square RGB images. Files of this package named after a format
(`image_folder`, `npz`, `idx`, ...) each hold one kind of source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import check_class_sizes

__all__ = ["BLOCK_SIZE", "DatasetInfo", "ImageBlocks", "Source", "SourceSplit", "SourceSplits", "Stored", "part_splits"]

BLOCK_SIZE = 256  # images decoded at a time


class ImageBlocks(Protocol):
    """Images as they are stored, decoded as they are asked for; a part of them pickles without the rest."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> ImageBlocks:
        """Return some of them, in the same order."""

    def __call__(self, image_size: int, /) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them in blocks, (b, image_size, image_size, 3)."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the catalogue says of a data set, before anything is decoded."""

    name: str
    description: str
    num_train: int  # validation included: it is taken from the training images
    num_test: int
    num_classes: int | None
    channels: int
    native_image_size: int | None  # pixels a side; None: mixed, or drawn at any size
    has_labels: bool
    licence: str
    source: str
    problem: str | None = None  # why it cannot be used, and how to mend it


@dataclass(frozen=True, kw_only=True)
class SourceSplit:
    """The training or the test images of a source, in a fixed order."""

    num_images: int
    blocks: ImageBlocks
    labels: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None  # images of one group never part at a split
    names: tuple[str, ...] | None = None  # file names, where images have them


@dataclass(frozen=True, kw_only=True)
class SourceSplits:
    """All that is decoded: both splits, the classes and what a person should know."""

    train: SourceSplit
    test: SourceSplit | None
    class_names: tuple[str, ...] | None
    warnings: tuple[str, ...] = field(default=())


def part_splits(
    parts: Mapping[str, SourceSplit], *, class_names: tuple[str, ...] | None, others: Sequence[str], where: str
) -> SourceSplits:
    """Return the parts "train" and perhaps "test" of a folder as one; `others` are its files of neither part.

    Raises:
        DataError: If there are too few training images, in all or in a class, to split them.
    """
    train = parts["train"]
    check_class_sizes(train.labels, num_images=train.num_images, class_names=class_names, where=f"{where}/train")
    left_out = (f"{len(others)} files are of neither split and were left out, such as {others[0]}",) if others else ()
    return SourceSplits(train=train, test=parts.get("test"), class_names=class_names, warnings=left_out)


class Stored(Protocol):
    """One data set as it is stored. Methods raise DataError, naming the file or field at fault."""

    def fingerprint(self) -> str:
        """Return a word that changes when the stored data does: sizes, times, versions."""

    def open(self) -> SourceSplits:
        """Return the splits; labels are read and checked here, pixels as blocks are asked for."""


class Source(Stored, Protocol):
    """A data set that can be named in a spec."""

    def info(self) -> DatasetInfo:
        """Return the catalogue entry, from counts and headers alone."""
