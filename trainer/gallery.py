"""A gallery of images beside their nearest neighbours, put together without a drawing library."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["neighbours_grid"]

GAP: Final = 4  # pixels between a query and its neighbours
LEAST_SIDE: Final = 64  # pixels; smaller images are shown as whole multiples of themselves


def neighbours_grid(
    query_images_QHWC: NDArray[np.uint8],
    query_features_QR: NDArray[np.float32],
    *,
    bank_images_MHWC: Any,
    bank_features_MR: NDArray[np.float32],
    num_neighbours: int = 8,
) -> NDArray[np.uint8]:
    """Return one picture, (H, W, 3): each row a query and, right of it, its nearest images of the bank by cosine.

    Args:
        query_images_QHWC: uint8 RGB, a row each.
        query_features_QR: Their h.
        bank_images_MHWC: uint8 RGB; an array, or rows that an index array picks from.
        bank_features_MR: Their h.
        num_neighbours: Images a row, besides the query.
    """
    similarity_QM = _unit(query_features_QR) @ _unit(bank_features_MR).T
    nearest = np.argsort(-similarity_QM, axis=1, kind="stable")[:, :num_neighbours]
    times = -(-LEAST_SIDE // query_images_QHWC.shape[1])
    gap = np.full((times * query_images_QHWC.shape[1], GAP, 3), 255, np.uint8)
    rows = [
        np.concatenate([_enlarged(query, times), gap, *(_enlarged(image, times) for image in bank_images_MHWC[row])], 1)
        for query, row in zip(query_images_QHWC, nearest, strict=True)
    ]
    return np.concatenate(rows)


def _enlarged(image_HWC: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    return image_HWC.repeat(times, axis=0).repeat(times, axis=1)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.linalg.norm(features, axis=1, keepdims=True)
    units: NDArray[np.float32] = features / norms.clip(np.finfo(np.float32).tiny)
    return units
