"""An operator's NAME.npz: `train_images` uint8 NHWC, and if there are any `train_labels`,
`test_images`, `test_labels` and `classes`. Nothing in it is ever unpickled.
"""  # noqa: D205 - the list of arrays is one sentence

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import file_facts, raise_if_passing
from trainer.data.labels import check_class_sizes, checked_labels
from trainer.data.pixels import array_blocks
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.errors import DataError

__all__ = ["NpzSource"]

NUM_DIMS = 4  # NHWC
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
# what damage anywhere in the file ends in; RuntimeError is a member that is encrypted or packed in an unknown way
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class NpzSource:
    """One .npz file; its name is the data set's id."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def info(self) -> DatasetInfo:
        """Return the catalogue entry, from the headers of the arrays and the labels."""
        headers = self._headers()
        train_shape = self._checked_shape(headers, "train_images")
        test_shape = self._checked_shape(headers, "test_images") if "test_images" in headers else (0,)
        class_names = self._class_names(headers)
        return DatasetInfo(
            name=self._path.stem,
            description="Array file registered by the operator",
            num_train=train_shape[0],
            num_test=test_shape[0],
            num_classes=len(class_names) if class_names else None,
            channels=train_shape[3],
            native_image_size=train_shape[1] if train_shape[1] == train_shape[2] else None,
            has_labels=class_names is not None,
            licence="unknown",
            source="operator",
        )

    def fingerprint(self) -> str:
        """Return the file's name, size and time."""
        return file_facts(self._path.parent, [self._path.name])

    def open(self) -> SourceSplits:
        """Return both splits, pixels in memory."""
        headers = self._headers()
        class_names = self._class_names(headers)
        train = self._split(headers, "train", class_names=class_names)
        check_class_sizes(
            train.labels, num_images=train.num_images, class_names=class_names, where=f"{self._path.name}: train_images"
        )
        has_test = "test_images" in headers and headers["test_images"][0][0] > 0
        return SourceSplits(
            train=train,
            test=self._split(headers, "test", class_names=class_names) if has_test else None,
            class_names=class_names,
        )

    def _split(
        self,
        headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]],
        split: str,
        *,
        class_names: tuple[str, ...] | None,
    ) -> SourceSplit:
        shape = self._checked_shape(headers, f"{split}_images")
        return SourceSplit(
            num_images=shape[0],
            blocks=array_blocks(self._read(f"{split}_images")),
            labels=self._labels(split, num_images=shape[0], num_classes=len(class_names)) if class_names else None,
        )

    def _labels(self, split: str, *, num_images: int, num_classes: int | None) -> NDArray[np.int64]:
        field = f"{split}_labels"
        values = self._read(field)
        try:
            return checked_labels(values, num_images=num_images, num_classes=num_classes, field=field)
        except DataError as error:
            raise DataError(f"{self._path.name}: {error.message}", file=self._path.name, **error.context) from error

    def _class_names(self, headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> tuple[str, ...] | None:
        if "train_labels" not in headers:
            return None
        if "classes" in headers:
            names = self._read("classes")
            if names.ndim != 1 or names.dtype.kind not in "US":
                raise self._error("classes", "is no list of names")
            return tuple(str(name) for name in names.astype(str))
        num_images = self._checked_shape(headers, "train_images")[0]
        labels = self._labels("train", num_images=num_images, num_classes=None)
        return tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))

    def _checked_shape(self, headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], field: str) -> tuple[int, ...]:
        if field not in headers:
            raise self._error(field, "is missing")
        shape, dtype = headers[field]
        if dtype != np.uint8 or len(shape) != NUM_DIMS or shape[3] not in CHANNELS or 0 in shape[1:]:
            raise self._error(field, f"is {dtype} of shape {shape}; it has to be uint8, (N, H, W, 1 | 3 | 4)")
        return shape

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return shape and type of each array, without its data; an array that would need unpickling is refused."""
        headers = {}
        try:
            with zipfile.ZipFile(self._path) as archive:
                for member in archive.infolist():
                    field = member.filename.removesuffix(".npy")
                    with archive.open(member) as file:
                        headers[field] = (*_read_header(file), member.file_size - file.tell())
        except UNREADABLE as error:
            raise_if_passing(error, name=self._path.name)
            raise DataError(f"{self._path.name} is no .npz file: {error}", file=self._path.name) from error
        for field, (shape, dtype, size_bytes) in headers.items():
            if dtype.hasobject:
                raise self._error(field, "holds Python objects, which are pickles; store plain arrays")
            if size_bytes != dtype.itemsize * int(np.prod(shape, dtype=object)):
                raise self._error(field, f"is truncated: its header announces shape {shape}")
        return {field: (shape, dtype) for field, (shape, dtype, _) in headers.items()}

    def _read(self, field: str) -> NDArray[Any]:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                return np.asarray(arrays[field])
        except KeyError as error:
            raise self._error(field, "is missing") from error
        except UNREADABLE as error:
            raise_if_passing(error, name=self._path.name)
            raise self._error(field, f"cannot be read: {error}") from error

    def _error(self, field: str, problem: str) -> DataError:
        return DataError(f"{self._path.name}: {field} {problem}", file=self._path.name, field=field)


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
