"""An operator's folder of image files: `train/` and, if there is one, `test/`.

Each holds a folder a class, or just images, which then have no labels. Classes are numbered in
the order of their names in `train/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts, walk
from trainer.data.labels import check_class_sizes
from trainer.data.pixels import decoded_blocks
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.errors import DataError

__all__ = ["SUFFIXES", "ImageFolderSource"]

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)


class ImageFolderSource:
    """Image files under one folder; the folder's name is the data set's id."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def info(self) -> DatasetInfo:
        """Return the catalogue entry, from names alone."""
        splits = self.open()
        return DatasetInfo(
            name=self._root.name,
            description="Image folder registered by the operator",
            num_train=splits.train.num_images,
            num_test=splits.test.num_images if splits.test else 0,
            num_classes=len(splits.class_names) if splits.class_names else None,
            channels=3,
            native_image_size=None,
            has_labels=splits.class_names is not None,
            licence="unknown",
            source="operator",
        )

    def fingerprint(self) -> str:
        """Return the name, size and time of every file."""
        return file_facts(self._root, walk(self._root, root=self._root))

    def open(self) -> SourceSplits:
        """Return the splits, from names alone; files are read as blocks are asked for."""
        train_names, ignored = self._image_names("train")
        test_names, ignored_in_test = self._image_names("test") if (self._root / "test").exists() else ((), ())
        class_names = self._class_names(train_names)
        train = self._split(train_names, class_names=class_names)
        check_class_sizes(
            train.labels, num_images=train.num_images, class_names=class_names, where=f"{self._root.name}/train"
        )
        ignored += ignored_in_test
        return SourceSplits(
            train=train,
            test=self._split(test_names, class_names=class_names) if test_names else None,
            class_names=class_names,
            warnings=(f"{len(ignored)} files are no images and were left out, such as {ignored[0]}",)
            if ignored
            else (),
        )

    def _image_names(self, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        folder = self._root / split
        if folder.is_symlink() or not folder.is_dir():
            raise DataError(f"{self._root.name}/{split} is no folder", file=f"{self._root.name}/{split}")
        names = tuple(walk(folder, root=self._root))
        images = tuple(name for name in names if Path(name).suffix.lower() in SUFFIXES)
        others = tuple(name for name in names if Path(name).suffix.lower() not in SUFFIXES)
        return images, others

    def _class_names(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        folders = {path.name for path in (self._root / "train").iterdir() if path.is_dir()}
        classes = sorted(name for name in folders if not name.startswith("."))
        if not classes:
            return None
        filled = {name.split("/")[1] for name in names}
        empty = [name for name in classes if name not in filled]
        if empty:
            raise DataError(f"{self._root.name}/train/{empty[0]} holds no images", classes=empty[:10])
        return tuple(classes)

    def _split(self, names: tuple[str, ...], *, class_names: tuple[str, ...] | None) -> SourceSplit:
        labels = None
        if class_names is not None:
            labels = np.array([self._label(name, class_names) for name in names], np.int64)
        return SourceSplit(num_images=len(names), blocks=FileBlocks(self._root, names), labels=labels, names=names)

    def _label(self, name: str, class_names: tuple[str, ...]) -> int:
        split, folder, *rest = name.split("/")
        if not rest:
            raise DataError(f"{self._root.name}/{name} lies beside class folders; move it into one", file=name)
        if folder not in class_names:
            raise DataError(f"{self._root.name}/{split}/{folder} is no class of train/", file=name)
        return class_names.index(folder)


@dataclass(frozen=True)
class FileBlocks:
    """Image files, decoded as they are asked for."""

    root: Path
    names: tuple[str, ...]  # relative to the root

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> FileBlocks:
        """Return some of them."""
        return FileBlocks(self.root, self.names[rows])

    def __call__(self, image_size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield all of them."""
        files = ((f"{self.root.name}/{name}", self.root / name) for name in self.names)
        return decoded_blocks(files, image_size=image_size)
