"""scikit-learn's digits: 8x8 grey, small enough for tests of everything else."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from trainer.data.pixels import array_blocks
from trainer.data.source import DatasetInfo, SourceSplit, SourceSplits
from trainer.data.split import held_out

__all__ = ["DigitsSource"]

TEST_RATIO = 0.2
SPLIT_KEY = "digits test split 1"
MAX_VALUE = 16  # of the stored pixels


class DigitsSource:
    """Handwritten digits that come with scikit-learn."""

    def info(self) -> DatasetInfo:
        """Return the catalogue entry."""
        splits = self.open()
        return DatasetInfo(
            name="digits",
            description="Handwritten digits, 8x8 grey; a test bench: raw pixels already tell them apart",
            num_train=splits.train.num_images,
            num_test=splits.test.num_images if splits.test else 0,
            num_classes=10,
            channels=1,
            native_image_size=8,
            has_labels=True,
            licence="CC BY 4.0",
            source="https://archive.ics.uci.edu/dataset/80, in scikit-learn",
        )

    def fingerprint(self) -> str:
        """Return scikit-learn's version."""
        from importlib.metadata import version

        return f"scikit-learn {version('scikit-learn')}"

    def open(self) -> SourceSplits:
        """Return the splits: a fixed, stratified fifth is the test split."""
        bunch = _digits()
        images = (bunch.images * (255 / MAX_VALUE)).round().astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        is_test = held_out(num_images=len(labels), labels=labels, groups=None, ratio=TEST_RATIO, key=SPLIT_KEY)
        train, test = (
            SourceSplit(num_images=int(rows.sum()), blocks=array_blocks(images[rows]), labels=labels[rows])
            for rows in (~is_test, is_test)
        )
        return SourceSplits(train=train, test=test, class_names=tuple("0123456789"))


@cache
def _digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()
