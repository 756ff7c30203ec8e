"""CIFAR-10, CIFAR-100 and STL-10 as torchvision leaves them on disk; nothing is downloaded here.

CIFAR's files are pickles, so they are opened only if their md5 is the published one.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts
from trainer.data.labels import checked_labels
from trainer.data.pixels import array_blocks
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.errors import DataError

__all__ = ["CIFAR10", "CIFAR100", "CifarLayout", "CifarSource", "Stl10Source"]


@dataclass(frozen=True, kw_only=True)
class CifarLayout:
    """Where a CIFAR set keeps what, with the md5 of each file as published."""

    name: str
    folder: str
    train_md5: dict[str, str]
    test_md5: dict[str, str]
    meta_md5: dict[str, str]
    labels_key: str
    names_key: str
    num_classes: int


CIFAR10 = CifarLayout(
    name="cifar10",
    folder="cifar-10-batches-py",
    train_md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test_md5={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta_md5={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    labels_key="labels",
    names_key="label_names",
    num_classes=10,
)
CIFAR100 = CifarLayout(
    name="cifar100",
    folder="cifar-100-python",
    train_md5={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test_md5={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta_md5={"meta": "7973b15100ade9c7d40fb424638fde48"},
    labels_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
)


class CifarSource:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) under the operator's folder."""

    def __init__(self, layout: CifarLayout, datasets_dir: Path | None) -> None:
        self._layout = layout
        self._folder = datasets_dir / layout.folder if datasets_dir else None

    def info(self) -> DatasetInfo:
        """Return the catalogue entry; its `problem` says how to get the files where they are missing."""
        layout = self._layout
        is_present = self._folder is not None and self._folder.is_dir()
        return DatasetInfo(
            name=layout.name,
            description=f"Photographs of {layout.num_classes} kinds of things, 32x32 (Krizhevsky 2009)",
            num_train=50_000,
            num_test=10_000,
            num_classes=layout.num_classes,
            channels=3,
            native_image_size=32,
            has_labels=True,
            licence="none stated",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            problem=None if is_present else _how_to_get(layout.folder),
        )

    def fingerprint(self) -> str:
        """Return the names, sizes and times of the files."""
        names = (*self._layout.train_md5, *self._layout.test_md5, *self._layout.meta_md5)
        return file_facts(_present(self._folder, self._layout.folder, names), names)

    def open(self) -> SourceSplits:
        """Return both splits, pixels in memory.

        Raises:
            DataError: If a file is missing or its md5 is not the published one; it is not opened then.
        """
        (meta_name, meta_md5), *_ = self._layout.meta_md5.items()
        meta = self._unpickle(meta_name, meta_md5)
        return SourceSplits(
            train=self._split(self._layout.train_md5),
            test=self._split(self._layout.test_md5),
            class_names=tuple(meta[self._layout.names_key]),
        )

    def _split(self, files: dict[str, str]) -> SourceSplit:
        batches = [self._unpickle(name, md5) for name, md5 in files.items()]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([np.asarray(batch[self._layout.labels_key], np.int64) for batch in batches])
        return SourceSplit(num_images=len(images), blocks=array_blocks(images), labels=labels)

    def _unpickle(self, name: str, md5: str) -> dict[str, Any]:
        shown_name = f"{self._layout.folder}/{name}"
        content = (_present(self._folder, self._layout.folder, [name]) / name).read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"{shown_name} has md5 {found}, not the published {md5}; it is a pickle and was not opened",
                file=shown_name,
            )
        content_by_key: dict[str, Any] = pickle.loads(content, encoding="latin1")  # noqa: S301 - its md5 is known
        return content_by_key


class Stl10Source:
    """STL-10's labelled images (Coates et al. 2011) under the operator's folder."""

    FOLDER = "stl10_binary"
    FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
    SIDE = 96

    def __init__(self, datasets_dir: Path | None) -> None:
        self._folder = datasets_dir / self.FOLDER if datasets_dir else None

    def info(self) -> DatasetInfo:
        """Return the catalogue entry; its `problem` says how to get the files where they are missing."""
        is_present = self._folder is not None and self._folder.is_dir()
        return DatasetInfo(
            name="stl10",
            description="Photographs of 10 kinds of things, 96x96, the labelled part (Coates et al. 2011)",
            num_train=5_000,
            num_test=8_000,
            num_classes=10,
            channels=3,
            native_image_size=self.SIDE,
            has_labels=True,
            licence="none stated",
            source="https://cs.stanford.edu/~acoates/stl10/",
            problem=None if is_present else _how_to_get(self.FOLDER),
        )

    def fingerprint(self) -> str:
        """Return the names, sizes and times of the files."""
        return file_facts(_present(self._folder, self.FOLDER, self.FILES), self.FILES)

    def open(self) -> SourceSplits:
        """Return both splits, pixels in memory."""
        folder = _present(self._folder, self.FOLDER, self.FILES)
        class_names = tuple((folder / "class_names.txt").read_text(encoding="utf-8").split())
        train, test = (self._split(folder, split, num_classes=len(class_names)) for split in ("train", "test"))
        return SourceSplits(train=train, test=test, class_names=class_names)

    def _split(self, folder: Path, split: str, *, num_classes: int) -> SourceSplit:
        pixels: NDArray[np.uint8] = np.fromfile(folder / f"{split}_X.bin", np.uint8)
        size_bytes = 3 * self.SIDE * self.SIDE
        if len(pixels) % size_bytes:
            raise DataError(f"{self.FOLDER}/{split}_X.bin is truncated", file=f"{split}_X.bin")
        images = pixels.reshape(-1, 3, self.SIDE, self.SIDE).transpose(0, 3, 2, 1)  # stored column by column
        stored = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(np.int64)
        labels = checked_labels(
            stored - 1, num_images=len(images), num_classes=num_classes, field=f"{self.FOLDER}/{split}_y.bin"
        )
        return SourceSplit(num_images=len(images), blocks=array_blocks(images), labels=labels)


def _how_to_get(folder: str) -> str:
    return f"not on this node: put torchvision's folder {folder} under SIMCLR_DATASETS"


def _present(folder: Path | None, shown_name: str, names: tuple[str, ...] | list[str]) -> Path:
    if folder is None or not folder.is_dir():
        raise DataError(_how_to_get(shown_name))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{shown_name}/{missing[0]} is missing", file=f"{shown_name}/{missing[0]}")
    return folder
