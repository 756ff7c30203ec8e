"""Fashion-MNIST in gzipped IDX files, as Debian's package and torchvision's folder have them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts, raise_if_passing
from trainer.data.labels import checked_labels
from trainer.data.pixels import array_blocks
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.errors import DataError

__all__ = ["FashionMnistSource"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
HOW_TO_GET = (
    "Fashion-MNIST is not on this node: install Debian's package dataset-fashion-mnist, "
    "or put torchvision's folder FashionMNIST under SIMCLR_DATASETS"
)


class FashionMnistSource:
    """The first of the given folders that holds the four files."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders

    @classmethod
    def under(cls, datasets_dir: Path | None) -> FashionMnistSource:
        """Return the source at the operator's folder, else at Debian's."""
        torchvision = (datasets_dir / "FashionMNIST" / "raw",) if datasets_dir else ()
        return cls(*torchvision, DEBIAN_FOLDER)

    def info(self) -> DatasetInfo:
        """Return the catalogue entry; its `problem` says how to get the files where they are missing."""
        folder = self._folder()
        return DatasetInfo(
            name="fashion-mnist",
            description="Clothes, 28x28 grey (Xiao et al. 2017)",
            num_train=_num_items(folder / "train-images-idx3-ubyte.gz") if folder else 60_000,
            num_test=_num_items(folder / "t10k-images-idx3-ubyte.gz") if folder else 10_000,
            num_classes=len(CLASS_NAMES),
            channels=1,
            native_image_size=28,
            has_labels=True,
            licence="MIT",
            source="https://github.com/zalandoresearch/fashion-mnist",
            problem=None if folder else HOW_TO_GET,
        )

    def fingerprint(self) -> str:
        """Return the names, sizes and times of the four files."""
        folder = self._present_folder()
        return file_facts(folder, sorted(path.name for path in folder.glob("*-ubyte.gz")))

    def open(self) -> SourceSplits:
        """Return both splits, pixels in memory."""
        folder = self._present_folder()
        return SourceSplits(
            train=_split(folder, prefix="train"), test=_split(folder, prefix="t10k"), class_names=CLASS_NAMES
        )

    def _folder(self) -> Path | None:
        return next((folder for folder in self._folders if (folder / "train-images-idx3-ubyte.gz").is_file()), None)

    def _present_folder(self) -> Path:
        folder = self._folder()
        if folder is None:
            raise DataError(HOW_TO_GET)
        return folder


def _split(folder: Path, *, prefix: str) -> SourceSplit:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", num_dims=3)
    labels_name = f"{prefix}-labels-idx1-ubyte.gz"
    labels = checked_labels(
        read_idx(folder / labels_name, num_dims=1),
        num_images=len(images),
        num_classes=len(CLASS_NAMES),
        field=labels_name,
    )
    return SourceSplit(num_images=len(images), blocks=array_blocks(images), labels=labels)


def read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """Return the bytes of a gzipped IDX file as an array of `num_dims` dimensions.

    Raises:
        DataError: If the file is missing, damaged, or not of that shape.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise_if_passing(error, name=path.name)
        raise DataError(f"{path.name} cannot be read: {error}", file=path.name) from error
    header_size = 4 + 4 * num_dims
    if len(content) < header_size or content[:4] != bytes((0, 0, 8, num_dims)):
        raise DataError(f"{path.name} is no IDX file of bytes in {num_dims} dimensions", file=path.name)
    shape = np.frombuffer(content[4:header_size], ">u4").astype(int)
    if len(content) - header_size != np.prod(shape):
        raise DataError(f"{path.name} is truncated: its header announces {tuple(shape.tolist())}", file=path.name)
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _num_items(path: Path) -> int:
    try:
        with gzip.open(path) as file:
            return int.from_bytes(file.read(8)[4:], "big")
    except (OSError, EOFError, zlib.error) as error:
        raise_if_passing(error, name=path.name)
        raise DataError(f"{path.name} cannot be read: {error}", file=path.name) from error
