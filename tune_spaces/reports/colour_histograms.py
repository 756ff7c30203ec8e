"""Whether colour alone tells images apart: the shortcut of the paper's Fig. 6.

Two crops of each image are drawn, with and without colour distortion. If the colour histogram of
one crop finds the other crop of its image among all images, a network need learn nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.prepare import prepare
from trainer.spec import ColorJitter, CropResize, Grayscale, HorizontalFlip, PretrainSpec, ViewsSpec
from trainer.views import ViewDrawer

__all__ = ["compare_histograms", "histogram_match", "histograms"]

NUM_IMAGES: Final = 256
NUM_SHOWN: Final = 2  # images whose histograms the figure shows, as in the paper
NUM_BINS: Final = 16

_CROPS = (CropResize(), HorizontalFlip())
_ARMS = {"crop": _CROPS, "crop and colour": (*_CROPS, ColorJitter(), Grayscale())}


def compare_histograms(spec: PretrainSpec, *, cache_dir: str, datasets_dir: str | None) -> dict[str, Any]:
    """Return, for crops with and without colour distortion, how well histograms match and two examples.

    `match` is a ratio 0..1; `chance` is what guessing gets.
    """
    dataset = prepare(
        spec.data.dataset,
        image_size=spec.data.image_size,
        cache_dir=Path(cache_dir),
        datasets_dir=datasets_dir,
        validation_ratio=spec.data.validation_ratio,
    )
    positions = np.arange(min(NUM_IMAGES, len(dataset.pretrain)))
    images_BHWC = torch.from_numpy(dataset.pretrain.take(positions))
    ids_B = torch.from_numpy(dataset.pretrain.sample_ids[positions])
    arms: dict[str, Any] = {}
    for name, operations in _ARMS.items():
        drawer = ViewDrawer(
            ViewsSpec(operations=operations),
            image_size=spec.data.image_size,
            seed=spec.seed,
            dtype=torch.float32,
            channels_last=False,
        )
        views_2BCHW = drawer.draw_pair(images_BHWC, sample_ids_B=ids_B, epoch=0).numpy()
        found = histograms(views_2BCHW)
        first, second = np.split(found, 2)
        shown = [[first[index].tolist(), second[index].tolist()] for index in range(min(NUM_SHOWN, len(first)))]
        arms[name] = {"match": histogram_match(first, second), "examples": shown}
    return {"kind": "colour_histograms", "chance": 1 / len(positions), "num_images": len(positions), "arms": arms}


def histograms(views_BCHW: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the histogram of each channel of each view over its own range of values, (B, C x bins).

    Each channel's share sums to 1. The bins span the values of all views together.
    """
    low, high = float(views_BCHW.min()), float(views_BCHW.max())
    scale = NUM_BINS / (high - low) if high > low else 0.0
    bins = np.minimum(((views_BCHW - low) * scale).astype(np.int64), NUM_BINS - 1)
    one_hot = bins.reshape(*bins.shape[:2], -1, 1) == np.arange(NUM_BINS)
    shares: NDArray[np.float64] = one_hot.mean(axis=2).reshape(len(views_BCHW), -1)
    return shares


def histogram_match(first_BK: NDArray[np.float64], second_BK: NDArray[np.float64]) -> float:
    """Return the share 0..1 of images whose second view has the histogram nearest (L1) to their first's."""
    nearest = [int(np.abs(second_BK - row).sum(axis=1).argmin()) for row in first_BK]
    return float(np.mean(np.asarray(nearest) == np.arange(len(first_BK))))
