"""Labels: integers 0..K-1 in the order of the class names, checked before anything trusts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError

__all__ = ["check_class_sizes", "checked_labels"]

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
