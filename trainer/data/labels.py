"""Labels: integers 0..K-1 in the order of the class names, checked before anything trusts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError

__all__ = ["check_class_sizes", "checked_labels", "numbered_labels"]

MIN_IMAGES = 4  # two to pretrain on, and a validation split beside them
MIN_CLASS_SIZE = 2  # one to fit a probe, one to judge it


def checked_labels(
    values: NDArray[np.generic], *, num_images: int, num_classes: int | None, field: str
) -> NDArray[np.int64]:
    """Return labels as int64.

    Raises:
        DataError: If they are no integers, not one for each image, negative, or not below `num_classes`.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{field} holds {values.dtype}; labels are integers from 0", field=field)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values  # noqa: PLR2004 - a column
    if values.shape != (num_images,):
        raise DataError(f"{field} has shape {values.shape}; there are {num_images} images", field=field)
    labels = values.astype(np.int64)
    if num_images and labels.min() < 0:
        raise DataError(f"{field} holds {labels.min()}; labels are integers from 0", field=field)
    if num_images and num_classes is not None and labels.max() >= num_classes:
        raise DataError(f"{field} holds {labels.max()}, but there are {num_classes} classes", field=field)
    return labels


def check_class_sizes(
    labels: NDArray[np.int64] | None, *, num_images: int, class_names: Sequence[str] | None, where: str
) -> None:
    """Raise DataError if there are too few training images, in all or in a class, to split them."""
    if num_images < MIN_IMAGES:
        raise DataError(f"{where} has {num_images} training images; at least {MIN_IMAGES} are needed")
    if labels is None:
        return
    names = class_names or [str(label) for label in range(int(labels.max()) + 1)]
    sizes = np.bincount(labels, minlength=len(names))
    small = [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if size < MIN_CLASS_SIZE]
    if small:
        raise DataError(
            f"{where} has classes with fewer than {MIN_CLASS_SIZE} training images: {', '.join(small[:10])}; "
            "add images or remove the class",
            classes=small[:10],
        )


def numbered_labels(
    values: Mapping[str, Sequence[int] | Sequence[str] | None], *, class_names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...] | None, dict[str, NDArray[np.int64]]]:
    """Return the names of the classes and the labels of each part, from numbers or names as they are stored.

    Args:
        values: Part, "train" being one of them, -> its stored labels; None: it has none.
        class_names: Of stored numbers, in their order, if they are known.
        where: What a person calls the data set.

    Raises:
        DataError: If parts differ in having labels or in their kind, or a label has no class in "train".
    """
    if all(part is None for part in values.values()):
        return None, {}
    kinds = {name: _kind(part) for name, part in values.items()}
    if len(set(kinds.values())) > 1:
        raise DataError(f"{where}: " + ", ".join(f"{name} has {kind}" for name, kind in kinds.items()))
    if kinds["train"] == "labels that are names":
        names = tuple(sorted({str(label) for label in values["train"] or ()}))
        index = {name: number for number, name in enumerate(names)}
        for part in values.values():
            if unknown := [label for label in part or () if label not in index]:
                raise DataError(f"{where}: {unknown[0]!r} is no class of train")
        return names, {
            part: np.array([index[str(label)] for label in labels or ()], np.int64) for part, labels in values.items()
        }
    numbers = {part: np.asarray(labels, np.int64) for part, labels in values.items()}
    names = tuple(class_names or map(str, range(int(numbers["train"].max(initial=0)) + 1)))
    return names, {
        part: checked_labels(labels, num_images=len(labels), num_classes=len(names), field=f"{where}: labels of {part}")
        for part, labels in numbers.items()
    }


def _kind(labels: Sequence[int] | Sequence[str] | None) -> str:
    if labels is None:
        return "no labels"
    return "labels that are names" if any(isinstance(label, str) for label in labels) else "labels that are numbers"
