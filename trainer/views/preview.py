"""A picture of real views, for a person to look at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.views.drawer import ViewDrawer

__all__ = ["preview_grid"]

GAP = 2  # pixels of white between tiles


def preview_grid(
    images_BHWC: Tensor, drawer: ViewDrawer, *, sample_ids_B: Tensor, epoch: int, columns: int = 8
) -> NDArray[np.uint8]:
    """Return one picture, (H, W, 3): a row for each image, itself and then `columns` of its views.

    The views are those of both branches of `epoch`, then of the epochs after it: what training sees.
    """
    tiles = [images_BHWC.cpu()]
    for column in range(columns):
        views_BCHW = drawer.draw(images_BHWC, sample_ids_B=sample_ids_B, epoch=epoch + column // 2, view=column % 2)
        tiles.append((views_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    rows = torch.stack(tiles, dim=1)
    padded = torch.nn.functional.pad(rows, (0, 0, 0, GAP, 0, GAP), value=255)
    num_rows, num_columns, height, width, _ = padded.shape
    grid = padded.permute(0, 2, 1, 3, 4).reshape(num_rows * height, num_columns * width, 3)
    return grid[:-GAP, :-GAP].numpy()
